"""Linear heads: bias-free, as in the paper (arXiv 2211.14946), and plain tensors, so that they can be stacked."""

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
