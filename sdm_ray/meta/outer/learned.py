"""Parameters that the outer optimiser trains on behalf of adversaries: where they start and how fast they learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdm_ray.config import AdversarySettings
from sdm_ray.meta.adversaries.fresh import MetaParameters
from sdm_ray.meta.objectives import TERMS
from sdm_ray.meta.outer.plan import Plan


class LearnedParameters:
    """Harmful head, inner learning rate and predictors; those that the plan trains require gradients.

    Args:
        settings: the distribution of adversaries.
        plan: what the outer step simulates.
        head: (C, D) the initial harmful head.
    """

    def __init__(self, settings: AdversarySettings, plan: Plan, head: Tensor) -> None:
        self._bounds = settings.learning_rate
        self.harmful_head = head
        self.log_learning_rate = head.new_tensor(math.log(settings.learning_rate_initial))
        starts_there = settings.head != "reset" and ("pooled" in settings.head_kinds or not plan.fresh_adapts())
        own_head = bool(plan.fresh) and (starts_there or not plan.simulates())
        self.fits_head = (
            plan.unadapted_reads_harmful_head() and not own_head and not (plan.gradients and not plan.fresh)
        )
        """Whether the harmful head has to be fitted to the un-adapted model, for terms that read it and nothing else
        trains it."""
        if own_head or plan.gradients or self.fits_head or plan.reads_harmful_after_desired():
            self.harmful_head.requires_grad_()
        if plan.num_steps and settings.learning_rate_mode == "meta_learned" and plan.fresh_adapts():
            self.log_learning_rate.requires_grad_()
        self.predictors: Tensor | None = None
        if any(TERMS[name].reads == "predicted" for name in plan.fresh):
            self.predictors = head.new_zeros(plan.num_steps + 1, *head.shape).requires_grad_()

    def trained(self) -> list[tuple[str, Tensor]]:
        """Those that the outer optimiser trains, by name."""
        named = self.state_dict()
        return [(name, value) for name, value in named.items() if value is not None and value.requires_grad]

    def with_trunk(self, trunk: Tensor) -> MetaParameters:
        """What adversaries of the harmful task start from, with a trunk (P,)."""
        return MetaParameters(trunk, self.harmful_head, self.log_learning_rate)

    def bound_learning_rate(self) -> None:
        """Clamp a trained learning rate to the settings' range."""
        if self.log_learning_rate.requires_grad:
            with torch.no_grad():
                self.log_learning_rate.clamp_(math.log(self._bounds.low), math.log(self._bounds.high))

    def state_dict(self) -> dict[str, Tensor | None]:
        """All of them, by name."""
        return {
            "harmful_head": self.harmful_head,
            "log_learning_rate": self.log_learning_rate,
            "predictors": self.predictors,
        }
