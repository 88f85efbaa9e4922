"""Gradients and metrics of an outer step, summed over what it simulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdm_ray.meta.objectives import TERMS, Trajectory, accuracies, step_losses


@dataclass
class GradientAccumulator:
    """Gradients and metrics of one micro-step, or of several, summed."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def add_gradient(self, name: str, gradient: Tensor | None) -> None:
        """Add a gradient to that of the parameter `name`; None adds nothing."""
        if gradient is not None:
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient

    def add_metric(self, name: str, value: Tensor, share: float = 1.0) -> None:
        """Add a metric, or a share of one."""
        scaled = value.detach().to(torch.float64) * share
        self.metrics[name] = self.metrics[name] + scaled if name in self.metrics else scaled

    def add_terms(self, trunk: Tensor, values: Mapping[str, Tensor]) -> None:
        """Add the trunk's gradient of terms, and their values by name."""
        self.add_gradient("trunk", trunk)
        for name, value in values.items():
            self.add_metric(f"train/{name}", value)

    def add_coupling(self, harmful: Tensor, desired: Tensor, trunk: Tensor, weights: dict[str, float]) -> None:
        """Add terms that are functions of two losses' gradients (0-d losses). The graph of `harmful` is kept."""
        harmful_gradient, desired_gradient = (
            torch.autograd.grad(loss, trunk, create_graph=True)[0] for loss in (harmful, desired)
        )
        for name, weight in weights.items():
            term = TERMS[name]
            value = term.function(harmful_gradient, desired_gradient)
            signed = -weight * value if term.maximised else weight * value
            (gradient,) = torch.autograd.grad(signed, trunk, retain_graph=True)
            self.add_gradient("trunk", gradient)
            self.add_metric(f"train/{name}", value)


def single(scores: Tensor, labels: Tensor) -> Trajectory:
    """Scores (B, C) of the un-adapted model as a trajectory."""
    return Trajectory(scores.detach()[None], scores.new_zeros(1, *scores.shape), labels, (0,))


def ends(trajectory: Trajectory, num_adversaries: int) -> dict[str, Tensor]:
    """Losses and accuracies at the first and last evaluated step, means over adversaries."""
    values = {"loss": step_losses(trajectory).detach(), "accuracy": accuracies(trajectory)}
    return {
        f"{what}_{end}": value.view(num_adversaries, -1)[:, index].mean()
        for what, value in values.items()
        for end, index in (("first", 0), ("last", -1))
    }
