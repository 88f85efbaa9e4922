"""Draws of adversaries' settings from their distribution, on CPU generators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from sdm_ray.config import AdversarySettings, LogRange
from sdm_ray.core.errors import UsageError
from sdm_ray.meta.inner.adversary import Adaptation, Adversary
from sdm_ray.models.interface import TrunkLike, gives_token_states

T = TypeVar("T")


def draw_fresh(settings: AdversarySettings, generator: torch.Generator, *, step: int, num_depths: int) -> Adversary:
    """An adversary that starts from the current weights and lives for one outer step.

    Every draw takes the same number of random numbers, so that a change of one setting does not shift the others.

    Args:
        settings: the distribution.
        generator: CPU generator.
        step: outer steps done; the number of inner steps may grow with it (`growing_steps`).
        num_depths: blocks of the trunk; with one block, a partly frozen adversary trains the head alone.
    """
    optimizer = pick(settings.optimizers, generator)
    batch_size = pick(settings.batch_sizes, generator)
    rate = log_uniform(settings.learning_rate, generator)
    kind, place = uniform(generator), uniform(generator)
    schedule, rank = pick(settings.learning_rate_schedules, generator), pick(settings.lora_ranks, generator)
    low, high = _range_of_steps(settings, step)
    num_steps = low + int(uniform(generator) * (high - low + 1))
    reset, noise = uniform(generator), uniform(generator)
    adaptation = _adaptation(settings, kind, num_depths)
    rates = {"meta_learned": None, "log_uniform": rate, "fixed": settings.learning_rate_initial}
    shares = {"meta_learned": 0.0, "reset": 1.0, "mixture": settings.head_reset_probability}
    return Adversary(
        optimizer=optimizer,
        batch_size=batch_size,
        num_steps=num_steps,
        learning_rate=rates[settings.learning_rate_mode],
        schedule=schedule,
        adaptation=adaptation,
        depth=1 + int(place * (num_depths - 1)) if adaptation == "partial" else 0,
        rank=rank if adaptation == "lora" else 0,
        reset_head=reset < shares[settings.head],
        noise=noise * settings.parameter_noise,
    )


def draw_persistent(settings: AdversarySettings, generator: torch.Generator) -> Adversary:
    """A persistent adversary, for the pool."""
    pool = settings.pool
    optimizer, batch_size = pick(settings.optimizers, generator), pick(settings.batch_sizes, generator)
    rate = log_uniform(pool.learning_rate, generator)
    return Adversary(
        optimizer=optimizer,
        batch_size=batch_size,
        num_steps=pool.steps_per_turn,
        learning_rate=rate,
        schedule="constant",
        adaptation="head" if uniform(generator) < pool.frozen_probability else "full",
        depth=0,
        rank=0,
        reset_head=True,
        noise=0.0,
    )


class HeadKinds:
    """Samples what adversaries' heads read.

    Args:
        settings: the distribution.
        trunk: the encoder.
        generator: CPU generator of all draws.

    Raises:
        UsageError: for heads that read tokens if the encoder gives no token states.
    """

    def __init__(self, settings: AdversarySettings, *, trunk: TrunkLike, generator: torch.Generator) -> None:
        self._kinds, self._generator = settings.head_kinds, generator
        tokens = [kind for kind in self._kinds if kind != "pooled"]
        if tokens and not gives_token_states(trunk):
            raise UsageError(
                f"train.adversary.head_kinds has {tokens[0]!r}, which reads token states, but {type(trunk).__name__} "
                "gives none; set it to [pooled]"
            )

    def draw(self, adversary: Adversary) -> Adversary:
        """The adversary with a sampled kind of head; one that reads tokens is fresh."""
        kind = pick(self._kinds, self._generator)
        return adversary if kind == "pooled" else replace(adversary, head_kind=kind, reset_head=True)


def _range_of_steps(settings: AdversarySettings, step: int) -> tuple[int, int]:
    """Fewest and most inner steps at an outer step."""
    lowest, highest = settings.num_steps_min or settings.num_steps, settings.num_steps
    if settings.growing_steps:
        start = settings.num_steps_min or min(1, settings.num_steps)
        highest = start + round((highest - start) * min(1.0, step / settings.growing_steps))
        lowest = settings.num_steps_min or highest
    return lowest, highest


def _adaptation(settings: AdversarySettings, kind: float, num_depths: int) -> Adaptation:
    if kind < settings.frozen_probability:
        return "head"
    if kind < settings.frozen_probability + settings.partly_frozen_probability:
        return "partial" if num_depths > 1 else "head"
    # LoRA takes the upper end of [0, 1), so that a change of another probability leaves the LoRA draws as they are.
    return "lora" if kind >= 1 - settings.lora_probability else "full"


def uniform(generator: torch.Generator) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def whole_number(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number between two bounds, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def log_uniform(bounds: LogRange, generator: torch.Generator) -> float:
    """A number from a range on a logarithmic scale."""
    low, high = math.log(bounds.low), math.log(bounds.high)
    return min(max(math.exp(low + (high - low) * uniform(generator)), bounds.low), bounds.high)


def pick(values: Sequence[T], generator: torch.Generator) -> T:
    """One of several values, each equally likely."""
    return values[whole_number(0, len(values) - 1, generator)]
