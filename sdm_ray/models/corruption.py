"""BERT's corruption of texts for masked language modelling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MASKED_SHARE, KEPT_SHARE = 0.8, 0.1
"""Shares of predicted tokens that are masked and kept; the others are replaced (Devlin et al., arXiv 1810.04805)."""


class Corrupted(NamedTuple):
    """Corrupted texts with tokens to predict, on the host."""

    input_ids: Tensor
    """(B, L)."""
    positions: Tensor
    """(N,) positions of the predicted tokens in the flattened B * L."""
    labels: Tensor
    """(N,) original ids of the predicted tokens."""


def corrupt(input_ids: Tensor, special: Tensor, *, mask_id: int, share: float, generator: torch.Generator) -> Corrupted:
    """Apply BERT's corruption: a share of each text's ordinary tokens, at least one, is predicted.

    Of these 80 % are masked, 10 % are replaced by a random ordinary token, and 10 % are kept. (Special tokens are not
    drawn, because RoBERTa derives positions from padding tokens.)

    Args:
        input_ids: (B, L) int64 on the host, padding included.
        special: (V,) bool, true for tokens that are never predicted, including the padding token.
        mask_id: id of the mask token.
        share: share of ordinary tokens to predict.
        generator: CPU generator.
    """
    ordinary = ~special[input_ids]
    ranks = torch.rand(input_ids.shape, generator=generator).masked_fill(~ordinary, 2.0).argsort(1).argsort(1)
    wanted = (ordinary.sum(1, keepdim=True) * share).round().clamp_min(1)
    chosen = (ranks < wanted) & ordinary
    corrupted = replaced(input_ids, chosen, mask_id=mask_id, tokens=_where(~special), generator=generator)
    positions = _where(chosen.flatten())
    return Corrupted(corrupted, positions, input_ids.flatten()[positions])


def replaced(input_ids: Tensor, chosen: Tensor, *, mask_id: int, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Ids (B, L) whose chosen positions (B, L) are masked, replaced by one of `tokens` (M,), or kept."""
    fate = torch.rand(input_ids.shape, generator=generator)
    noise = tokens[torch.randint(len(tokens), input_ids.shape, generator=generator)]
    masked = input_ids.masked_fill(chosen & (fate < MASKED_SHARE), mask_id)
    return torch.where(chosen & (fate >= MASKED_SHARE + KEPT_SHARE), noise, masked)


def _where(flags: Tensor) -> Tensor:
    """Indices of true elements of host flags (N,); uses numpy, because `torch.nonzero` synchronises with a GPU."""
    return torch.from_numpy(flags.numpy().nonzero()[0])
