"""The trajectory plot's data: how fast a few adversaries of the distribution learn from the present weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.types import Batch
from sdm_ray.meta.adversaries.fresh import MetaParameters, Simulator
from sdm_ray.meta.inner.problems import EvaluationBatch
from sdm_ray.meta.objectives import step_losses

PROBED_ADVERSARIES = 4
PROBED_EXAMPLES = 64
PROBED_POOL_STEPS = 50
"""Averaged over so many adversaries and examples; adversaries of the pool's kind take so many steps."""
MOST_INTERVALS = 16
"""Most intervals between evaluations, which are evenly spaced: on a deep encoder they cost more than the steps do."""


def probe_settings(settings: TrainSettings, *, fresh: bool) -> TrainSettings:
    """The training with a few adversaries of equal length; without fresh ones, of the pool's kind."""
    adversary = settings.adversary
    changes: dict[str, Any] = {
        "num_adversaries": PROBED_ADVERSARIES, "num_steps_min": None, "growing_steps": 0, "parameter_noise": 0.0,
    }  # fmt: skip
    if not fresh:
        pool = adversary.pool
        changes |= {
            "num_steps": min(pool.lifespan_steps, PROBED_POOL_STEPS),
            "subset_size": pool.subset_size,
            "learning_rate_mode": "log_uniform",
            "learning_rate": pool.learning_rate,
            "learning_rate_schedules": ("constant",),
            "frozen_probability": pool.frozen_probability,
            "partly_frozen_probability": 0.0,
            "lora_probability": 0.0,
            "head": "reset",
        }
    changed = adversary.model_copy(update=changes)
    return settings.model_copy(update={"adversary": changed, "outer_steps": "all", "dropout": "off"})


def evaluated_steps_of(num_steps: int) -> tuple[int, ...]:
    """Inner steps after which an adversary of K is evaluated: the first, the last, and evenly spaced ones between."""
    return (*range(0, num_steps, math.ceil(num_steps / MOST_INTERVALS) or 1), num_steps)


def mean_trajectory(
    simulator: Simulator, parameters: MetaParameters, outer: Batch, indices: Tensor
) -> dict[int, float]:
    """Adapted harmful losses by inner step, averaged over adversaries.

    Args:
        simulator: of `probe_settings`, with a generator of its own.
        parameters: what they start from, detached.
        outer: (B, L) the batch that they are evaluated on.
        indices: (B,) its host indices.
    """
    adversaries = simulator.draw(0)
    steps = evaluated_steps_of(adversaries[0].num_steps)
    found = simulator.evaluate(adversaries, parameters, (EvaluationBatch(outer, None),), indices, steps)
    losses = [step_losses(trajectory).view(count, -1).sum(0) for trajectory, count in found]
    return dict(zip(steps, (torch.stack(losses).sum(0) / len(adversaries)).tolist(), strict=True))
