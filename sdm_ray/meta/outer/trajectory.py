"""Data of the trajectory plot: the loss of a few adversaries by inner step, starting at the current weights."""

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
"""The loss is averaged over `PROBED_ADVERSARIES` adversaries and `PROBED_EXAMPLES` examples; adversaries with the
pool's settings take at most `PROBED_POOL_STEPS` steps."""
MOST_INTERVALS = 16
"""Most intervals between evaluations. On a deep encoder an evaluation costs more than an inner step."""


def probe_settings(settings: TrainSettings, *, fresh: bool) -> TrainSettings:
    """Training settings with `PROBED_ADVERSARIES` adversaries of equal numbers of steps.

    Args:
        settings: the training.
        fresh: whether the training has fresh adversaries; if not, the adversaries get the pool's settings.
    """
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
    """Inner steps at which an adversary of K steps is evaluated: 0, K, and evenly spaced ones between."""
    return (*range(0, num_steps, math.ceil(num_steps / MOST_INTERVALS) or 1), num_steps)


def mean_trajectory(
    simulator: Simulator, parameters: MetaParameters, outer: Batch, indices: Tensor
) -> dict[int, float]:
    """Harmful loss by inner step, averaged over adversaries.

    Args:
        simulator: built from `probe_settings`, with its own generator.
        parameters: the adversaries' initial parameters, detached.
        outer: (B, ·) the evaluation batch.
        indices: (B,) the batch's examples, on the host.
    """
    adversaries = simulator.draw(0)
    steps = evaluated_steps_of(adversaries[0].num_steps)
    found = simulator.evaluate(adversaries, parameters, (EvaluationBatch(outer, None),), indices, steps)
    losses = [step_losses(trajectory).view(count, -1).sum(0) for trajectory, count in found]
    return dict(zip(steps, (torch.stack(losses).sum(0) / len(adversaries)).tolist(), strict=True))
