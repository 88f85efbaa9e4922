"""The outer optimiser: Adam over groups with their own learning rates, warm-up and clipping."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.optim import clip_by_norm


class Group(NamedTuple):
    """Parameters that share a learning rate."""

    params: list[Tensor]
    """Leaves; may be none."""
    learning_rate: float
    """After warm-up."""
    gradient_clip: float | None
    """Norm that the group's gradient is clipped to."""


class OuterOptimizer:
    """Adam (fused), with a linear warm-up of the learning rates; it never waits for the device.

    Args:
        groups: the first one's gradient norm is reported.
        warmup_steps: steps until the learning rates are reached.
    """

    def __init__(self, groups: list[Group], warmup_steps: int) -> None:
        self._groups, self._warmup_steps, self._count = groups, warmup_steps, 0
        self._adam = torch.optim.Adam(
            [{"params": group.params, "lr": group.learning_rate} for group in groups if group.params], fused=True
        )

    def step(self, gradients: list[list[Tensor | None]]) -> Tensor:
        """Apply gradients, one list for each group; None leaves a parameter where it is.

        Returns:
            0-d norm of the first group's gradient before clipping.
        """
        self._count += 1
        warmth = min(1.0, self._count / self._warmup_steps) if self._warmup_steps else 1.0
        filled = iter(self._adam.param_groups)
        leading = gradients[0][0]
        assert leading is not None
        norm: Tensor = torch.linalg.vector_norm(leading)
        for group, grads in zip(self._groups, gradients, strict=True):
            if not group.params:
                continue
            next(filled)["lr"] = group.learning_rate * warmth
            present = [grad for grad in grads if grad is not None]
            if group.gradient_clip is not None and present:
                grads = list(clip_by_norm(tuple(present), group.gradient_clip))
            for param, grad in zip(group.params, grads, strict=True):
                param.grad = grad
        self._adam.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts, by position of the parameter."""
        moments = self._adam.state_dict()["state"]
        return {"count": self._count, "moments": {str(index): dict(values) for index, values in moments.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._count = state["count"]
        moments = {int(index): values for index, values in state["moments"].items()}
        self._adam.load_state_dict({"state": moments, "param_groups": self._adam.state_dict()["param_groups"]})
