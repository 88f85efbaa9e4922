"""The trajectory plot's probe: how fast a few adversaries of the distribution learn from the present weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.types import Batch
from sdm_ray.meta.adversaries.fresh import Heads, Simulator
from sdm_ray.meta.inner.problems import Watch
from sdm_ray.meta.objectives import step_losses

PROBED_ADVERSARIES = 4
PROBED_EXAMPLES = 64
PROBED_POOL_STEPS = 50
"""What is averaged over: adversaries, watched examples, and the steps of adversaries of the pool's kind."""
MOST_INTERVALS = 16
"""An adversary of more steps is watched at evenly spaced ones alone: on a deep encoder watching costs more than its
steps do."""


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


def moments_of(num_steps: int) -> tuple[int, ...]:
    """Inner steps after which an adversary of K is watched: the first, the last, and evenly spaced ones between."""
    return (*range(0, num_steps, math.ceil(num_steps / MOST_INTERVALS) or 1), num_steps)


def mean_trajectory(simulator: Simulator, heads: Heads, outer: Batch, indices: Tensor) -> dict[int, float]:
    """Adapted harmful losses by inner step, averaged over adversaries.

    Args:
        simulator: of `probe_settings`, with a generator of its own.
        heads: what they start from, detached.
        outer: (B, L) the batch that they are watched on.
        indices: (B,) its host indices.
    """
    adversaries = simulator.draw(0)
    moments = moments_of(adversaries[0].num_steps)
    seen = simulator.look_on(adversaries, heads, (Watch(outer, None),), indices, moments)
    losses = [step_losses(trajectory).view(count, -1).sum(0) for trajectory, count in seen]
    return dict(zip(moments, (torch.stack(losses).sum(0) / len(adversaries)).tolist(), strict=True))
