"""Draws from the adversary distribution: habits, few-shot subsets, batches; all of it on CPU generators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from sdm_ray.config import AdversarySettings, LogRange

T = TypeVar("T")


Adaptation = Literal["full", "head", "partial", "lora"]
"""What an adversary trains: everything, the head alone, the upper blocks, or low-rank factors and the head."""


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """One adversary's habits."""

    optimizer: str
    """`sgd`, `momentum`, `adam`, `adamw` or `rmsprop`."""
    batch_size: int
    """Examples in an inner batch."""
    num_steps: int
    """Inner steps (of a turn, where it is persistent)."""
    learning_rate: float | None
    """None where it is meta-learned."""
    schedule: str
    """Course of the learning rate: `constant`, `warmup`, `linear` or `cosine`."""
    adaptation: Adaptation
    """What it trains."""
    depth: int
    """Blocks that `partial` freezes from below, the embeddings first; else 0."""
    rank: int
    """Rank of `lora`'s factors; else 0."""
    reset_head: bool
    """Whether it starts from a fresh head instead of the meta-learned one."""
    noise: float
    """Standard deviation of the parameter noise that it starts with, relative to each parameter's root mean square."""

    def describe(self) -> str:
        """One phrase for error messages."""
        rate = "meta-learned learning rate" if self.learning_rate is None else f"learning rate {self.learning_rate:.3g}"
        trained = {
            "full": "whole model",
            "head": "head only",
            "partial": f"lowest {self.depth} of the blocks frozen",
            "lora": f"LoRA of rank {self.rank}",
        }
        parts = [self.optimizer, rate, f"batch {self.batch_size}", trained[self.adaptation], f"{self.num_steps} steps"]
        if self.schedule != "constant":
            parts.append(f"{self.schedule} schedule")
        parts.append("fresh head" if self.reset_head else "meta-learned head")
        if self.noise:
            parts.append(f"noise {self.noise:.3g}")
        return ", ".join(parts)

    def shape(self) -> tuple[str | int, ...]:
        """What must agree for adversaries to run as one batch."""
        return (
            self.optimizer, self.batch_size, self.num_steps, self.schedule, self.adaptation, self.depth, self.rank
        )  # fmt: skip


def draw_fresh(settings: AdversarySettings, generator: torch.Generator, *, step: int, num_depths: int) -> Adversary:
    """An adversary that starts from the current weights and lives for one outer step.

    Every draw takes the same number of random numbers, so that a change of one setting does not shift the others.

    Args:
        settings: the distribution.
        generator: CPU generator.
        step: outer steps done, for a number of inner steps that grows.
        num_depths: blocks of the trunk; where there is one alone, what would be partly frozen trains the head alone.
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
    """A member of the pool."""
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
    # Low-rank adversaries take the upper end, so that a change of another share does not turn one into another.
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
