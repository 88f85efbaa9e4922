"""What a student has not learnt of its teacher: outputs (Hinton et al., arXiv 1503.02531) and normalised features."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.objectives.losses import full_precision
from sdm_ray.meta.objectives.retention import squared_distances


def output_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's class probabilities from the teacher's, both at a temperature, times its square.

    Args:
        student: (B, C) scores.
        teacher: (B, C) scores.
        temperature: what scores are divided by.

    Returns:
        0-d mean over texts, in nats; the factor keeps its gradient's size whatever the temperature.
    """
    ours, theirs = (F.log_softmax(full_precision(scores) / temperature, -1) for scores in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of hidden states (H, B, L, D), normalised token by token, over layers and tokens of `mask`
    (B, L)."""
    return squared_distances(normalised(student), normalised(teacher), mask).mean()


def pooled_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of normalised features (B, D)."""
    return (normalised(student) - normalised(teacher)).square().mean()


def normalised(features: Tensor) -> Tensor:
    """Features (..., D) with mean 0 and variance 1 over D."""
    return F.layer_norm(full_precision(features), features.shape[-1:])


__all__ = ["hidden_loss", "normalised", "output_loss", "pooled_loss"]
