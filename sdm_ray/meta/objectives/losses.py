"""Task losses for classification and regression, and losses and accuracies along a trajectory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.objectives.registry import Trajectory


def full_precision(values: Tensor) -> Tensor:
    """Convert half-precision values to float32; float32 and float64 are unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of every example: cross-entropy in nats, or squared error if the labels are floating-point.

    Args:
        logits: (..., B, C); C is 1 in a regression.
        labels: (..., B) class indices or targets; missing leading dimensions are broadcast.

    Returns:
        (..., B).
    """
    scores = full_precision(logits)
    labels = labels.expand(scores.shape[:-1])
    if labels.is_floating_point():
        assert scores.shape[-1] == 1, scores.shape
        return (scores.squeeze(-1) - labels).square()
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(...) mean of `example_losses` over the batch."""
    return example_losses(logits, labels).mean(-1)


def step_losses(trajectory: Trajectory) -> Tensor:
    """(S,) task loss at every evaluated step."""
    return task_loss(trajectory.logits, trajectory.labels)


def accuracies(trajectory: Trajectory) -> Tensor:
    """(S,) accuracy on the outer batch at every evaluated step; 0 in a regression."""
    logits, labels = trajectory.logits.detach(), trajectory.labels
    if labels.is_floating_point():
        return logits.new_zeros(len(logits), dtype=torch.float32)
    return (logits.argmax(-1) == labels).to(torch.float32).mean(1)


def class_scores(trajectory: Trajectory, term: str) -> Tensor:
    """Logits (S, B, C) in float32, for a term that is defined for classification only.

    Raises:
        ValueError: for a regression.
    """
    if trajectory.labels.is_floating_point():
        raise ValueError(
            f"blocking.{term} is defined for class labels, got {trajectory.labels.dtype} targets; "
            "set its weight to 0 for a regression"
        )
    return full_precision(trajectory.logits)
