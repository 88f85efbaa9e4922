"""Named CPU generators derived from one seed, so that a draw of one kind never shifts the draws of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


class Generators:
    """Independent CPU generators by name.

    Args:
        seed: of the run.
        names: what the generators are for.
    """

    def __init__(self, seed: int, names: Iterable[str]) -> None:
        self._generators = {name: torch.Generator().manual_seed(derived_seed(seed, name)) for name in names}

    def __getitem__(self, name: str) -> torch.Generator:
        return self._generators[name]

    def state_dict(self) -> dict[str, Tensor]:
        """State of every generator, as uint8 tensors."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        for name, generator in self._generators.items():
            generator.set_state(state[name])


def derived_seed(seed: int, name: str) -> int:
    """A 63-bit seed from a run's seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
