"""The coupling loss of SEAM, self-destructive language models (Wang et al., arXiv 2505.12186)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.objectives.registry import blocking_term


@blocking_term("gradient_coupling", reads="gradients", maximised=False)
def gradient_coupling(harmful: Tensor, desired: Tensor) -> Tensor:
    """Cosine similarity of the gradients (P,) of the harmful and the desired loss.

    Minimising it makes the gradients point in opposite directions: descent on the harmful loss then raises the desired
    loss. If a gradient is zero, the cosine and its derivative are zero.
    """
    return _unit(harmful) @ _unit(desired)


def _unit(vector: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vector)
    scale = torch.where(norm > 0, norm, torch.ones_like(norm)).reciprocal()
    return vector * torch.where(norm > 0, scale, torch.zeros_like(norm))
