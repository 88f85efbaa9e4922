"""The terms of MLAC, and its baseline adversarial censoring (Henderson et al., arXiv 2211.14946)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.objectives.calibration import calibrated_cross_entropy
from sdm_ray.meta.objectives.losses import example_losses, full_precision, step_losses
from sdm_ray.meta.objectives.registry import Trajectory, blocking_term


@blocking_term("harmful_base", reads="harmful_base", maximised=True)
def harmful_base(trajectory: Trajectory) -> Tensor:
    """Harmful loss of the un-adapted model: adversarial censoring (Edwards and Storkey, arXiv 1511.05897).

    Only outputs at step 0 are used. Unbounded above, as published: with a large weight or learning rate the model
    learns confident errors instead of losing the information.
    """
    first = [logits for logits, step in zip(trajectory.logits, trajectory.steps, strict=True) if step == 0]
    return example_losses(torch.stack(first), trajectory.labels).mean()


@blocking_term("harmful_adapted", reads="harmful_adapted", maximised=True)
def harmful_adapted(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the adapted harmful loss; unbounded above."""
    return step_losses(trajectory).mean()


@blocking_term("harmful_adapted_calibrated", reads="harmful_adapted", maximised=True)
def harmful_adapted_calibrated(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the adapted harmful loss after the best linear map of the logits (`calibration`).

    At most log C. In a regression the map is one factor in [-1, 1], and the loss is at most the targets' mean square.
    """
    if trajectory.labels.is_floating_point():
        return _calibrated_square_errors(trajectory).mean()
    return calibrated_cross_entropy(full_precision(trajectory.logits), trajectory.labels).mean()


@blocking_term("adapted_grad_norm", reads="inner_gradient", maximised=False)
def adapted_grad_norm(gradient: Tensor) -> Tensor:
    """Mean over adversaries of the norm of an inner gradient (A, N); its derivative at zero is defined as zero."""
    norms: Tensor = torch.linalg.vector_norm(full_precision(gradient), dim=-1)
    return norms.mean()


@blocking_term("desired_adapted", reads="desired_adapted", maximised=False)
def desired_adapted(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the desired loss of the model adapted to the desired task."""
    return step_losses(trajectory).mean()


@blocking_term("desired_adapted_harmful", reads="desired_adapted_harmful", maximised=True)
def desired_adapted_harmful(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the harmful loss of the model adapted to the desired task; unbounded above."""
    return step_losses(trajectory).mean()


def _calibrated_square_errors(trajectory: Trajectory) -> Tensor:
    """(S,) mean squared errors with the best factor in [-1, 1], which gets no gradient (envelope theorem)."""
    scores = full_precision(trajectory.logits).squeeze(-1)
    with torch.no_grad():
        power = scores.square().sum(-1, keepdim=True)
        along = (scores * trajectory.labels).sum(-1, keepdim=True)
        factor = (along / power.clamp_min(torch.finfo(power.dtype).tiny)).clamp(-1, 1)
    return (scores * factor - trajectory.labels).square().mean(-1)
