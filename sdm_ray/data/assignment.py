"""Split of a content by its hash and the split fractions; `splits` uses it for rows, the synthetic world for words."""

from __future__ import annotations

import hashlib

import numpy as np

from sdm_ray.config.data import SplitFractions
from sdm_ray.core.types import Split

SPLITS = tuple(Split)
"""The splits in the order of their codes."""


def split_codes(positions: np.ndarray, shares: SplitFractions) -> np.ndarray:
    """(N,) int8 indices into `SPLITS` of hashes (N,) in [0, 1)."""
    bounds = np.cumsum([shares.meta_train, shares.attacker_train, shares.attacker_val])
    return np.searchsorted(bounds, positions, side="right").astype(np.int8)


def split_of(content: str, shares: SplitFractions, seed: int) -> Split:
    """Split of one content, or of a group that shares no text with another."""
    return SPLITS[int(split_codes(np.array([unit_hash(content, seed)]), shares)[0])]


def unit_hash(content: str, seed: int) -> float:
    """Hash of the content as a number in [0, 1)."""
    digest = hashlib.sha256(f"split\0{seed}\0{content}".encode("utf-8", "surrogatepass")).digest()
    # 53 bits, so that no rounding reaches 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)
