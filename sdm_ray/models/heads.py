"""Linear heads: bias-free, as in the paper (arXiv 2211.14946), and plain tensors, so that they can be stacked.

A head reads the pooled features, or token states: their mean under the softmax weights of a learned query, or for each
class its largest score over tokens. Such heads are tensors too; a query is the last row.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEAD_STD = 0.02


def init_head(
    feature_dim: int,
    num_classes: int,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Initialise a head, normal with standard deviation 0.02.

    It is drawn on the generator's device and then moved, so that a seed gives the same head on every device.

    Returns:
        (C, D) weights without gradient history.
    """
    weights = torch.randn(num_classes, feature_dim, generator=generator, device=generator.device, dtype=torch.float32)
    return (weights * HEAD_STD).to(device=device, dtype=dtype, non_blocking=True)


def logits(features: Tensor, head: Tensor) -> Tensor:
    """Compute the logits of every class.

    Args:
        features: (..., B, D).
        head: (..., C, D); leading dimensions broadcast against those of `features`.

    Returns:
        (..., B, C).
    """
    return features @ head.mT


def attended(states: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """(..., B, D) means of token states (..., B, L, D) under the softmax of scores (..., B, L, 1).

    Args:
        states: token states.
        scores: of every token.
        mask: (..., B, L), 1 on tokens and 0 on padding.
    """
    return ((scores + _padding(states, mask)).softmax(-2) * states).sum(-2)


def largest(states: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """(..., B, C) largest scores over the tokens, of scores (..., B, L, C); the arguments are those of `attended`."""
    return (scores + _padding(states, mask)).amax(-2)


def token_scores(states: Tensor, readers: Tensor) -> Tensor:
    """(..., B, L, R) scores of token states (..., B, L, D) under readers (..., R, D), leading dimensions equal."""
    return (states.flatten(-3, -2) @ readers.mT).view(*states.shape[:-1], -1)


def _padding(states: Tensor, mask: Tensor) -> Tensor:
    """(..., B, L, 1) what is added to scores so that padding has no part in them."""
    return (1 - mask.to(states.dtype))[..., None] * torch.finfo(states.dtype).min
