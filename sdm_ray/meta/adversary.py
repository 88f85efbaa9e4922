"""Draws from the adversary distribution: habits, few-shot subsets, batches; all of it on CPU generators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sdm_ray.config import AdversarySettings, LogRange
from sdm_ray.core.errors import UsageError
from sdm_ray.data.sampler import EpochSampler

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


class FewShot:
    """Draws labelled few-shot subsets, the classes balanced as far as their examples go.

    Args:
        indices: (N,) host indices that may be drawn.
        labels: (N,) their labels.
    """

    def __init__(self, indices: Tensor, labels: Tensor) -> None:
        self._classes = [indices[labels == label] for label in torch.unique(labels).tolist()]
        self._total = len(indices)

    def check(self, size: int | None, setting: str) -> None:
        """Refuse a subset size that exceeds the examples.

        Raises:
            UsageError: naming the setting.
        """
        if size is not None and size > self._total:
            raise UsageError(f"{setting} is {size}, but the meta-training split has only {self._total} examples")

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """(size,) host indices without repetition, sorted."""
        order = torch.randperm(len(self._classes), generator=generator).tolist()
        shuffled = [values[torch.randperm(len(values), generator=generator)] for values in self._classes]
        counts = _shares(size, [len(values) for values in self._classes], order)
        chosen = torch.cat([values[:count] for values, count in zip(shuffled, counts, strict=True)])
        return chosen.sort().values


def _shares(size: int, available: list[int], order: list[int]) -> list[int]:
    """As even a split of `size` as the classes allow; what is left over goes to the first classes of `order`."""
    counts = [0] * len(available)
    while (left := size - sum(counts)) > 0:
        open_classes = [c for c in order if counts[c] < available[c]]
        share, rest = divmod(left, len(open_classes))
        for rank, c in enumerate(open_classes):
            counts[c] += min(share + (rank < rest), available[c] - counts[c])
    return counts


class InnerBatches:
    """Host indices (K, B) of a fresh adversary's batches: from its own few-shot subset, or from all examples.

    Args:
        indices: (N,) host indices of meta-training.
        few_shot: draws the subsets.
        settings: the distribution.
        generator: CPU generator of all draws.
    """

    def __init__(
        self, indices: Tensor, few_shot: FewShot, settings: AdversarySettings, generator: torch.Generator
    ) -> None:
        self._few_shot, self._generator, self._subset_size = few_shot, generator, settings.subset_size
        self._sampler = EpochSampler(indices, max(settings.batch_sizes), generator)

    def draw(self, batch_size: int, num_steps: int) -> Tensor:
        """(num_steps, B) host indices; B is smaller than `batch_size` only where a subset is."""
        if self._subset_size is None:
            return self._sampler.next(num_steps * batch_size).view(num_steps, -1)
        subset = self._few_shot.draw(self._subset_size, self._generator)
        sampler = EpochSampler(subset, min(batch_size, len(subset)), self._generator)
        return torch.stack([sampler.next() for _ in range(num_steps)])

    def state_dict(self) -> dict[str, Any]:
        """Position among all examples."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._sampler.load_state_dict(state)
