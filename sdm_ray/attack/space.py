"""Search spaces of attackers, and samplers that propose points and receive their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch

from sdm_ray.core.errors import UsageError

Point = dict[str, Any]
"""Hyper-parameters by name."""


@dataclass(frozen=True)
class LogFloat:
    """A positive real number, uniform in its logarithm."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """The value at quantile `u` in [0, 1)."""
        value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Integer:
    """A whole number, uniform; both ends included."""

    low: int
    high: int

    def at(self, u: float) -> int:
        """The value at quantile `u` in [0, 1)."""
        return min(self.low + math.floor(u * (self.high - self.low + 1)), self.high)


@dataclass(frozen=True)
class Choice:
    """One of several values, uniform."""

    values: tuple[Any, ...]

    def at(self, u: float) -> Any:
        """The value at quantile `u` in [0, 1)."""
        return self.values[min(math.floor(u * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True)
class Chance:
    """True with a probability."""

    probability: float

    def at(self, u: float) -> bool:
        """The value at quantile `u` in [0, 1)."""
        return u < self.probability


Space = dict[str, LogFloat | Integer | Choice | Chance]
"""Dimensions of a search by hyper-parameter name, in a fixed order."""


class Sampler(Protocol):
    """Proposes points. Larger scores are better; failed points score NaN."""

    def ask(self, num: int) -> list[Point]:
        """Propose 1 to `num` further points; an adaptive sampler may return fewer to learn from their scores first."""
        ...

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Receive the scores of points from `ask`."""
        ...


class SamplerFactory(Protocol):
    """Makes a sampler for a space from a seed; equal arguments give equal points."""

    def __call__(self, space: Space, seed: int) -> Sampler: ...


_ENGINE: Any = torch.quasirandom.SobolEngine  # untyped in torch


class SobolSampler:
    """Scrambled Sobol points: low discrepancy in every dimension, equal for every model, independent of scores."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._engine: Any = _ENGINE(len(space), scramble=True, seed=seed)

    def ask(self, num: int) -> list[Point]:
        """The next `num` points of the sequence."""
        rows: list[list[float]] = self._engine.draw(num, dtype=torch.float64).tolist()
        return [
            {name: dimension.at(u) for (name, dimension), u in zip(self._space.items(), row, strict=True)}
            for row in rows
        ]

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Ignored: the points do not depend on the model."""


class DesignedSampler(SobolSampler):
    """Sobol points in which some values are replaced.

    Args:
        space: the search space.
        seed: seed of the Sobol points.
        design: values that replace those of successive points, repeated cyclically.
    """

    def __init__(self, space: Space, seed: int, design: Sequence[Point]) -> None:
        super().__init__(space, seed)
        self._design, self._num_asked = design, 0

    def ask(self, num: int) -> list[Point]:
        """The next `num` points."""
        points = super().ask(num)
        given = [self._design[(self._num_asked + index) % len(self._design)] for index in range(num)]
        self._num_asked += num
        return [point | values for point, values in zip(points, given, strict=True)]


class Alternating:
    """Every other point of a sampler that ignores scores, so that two searches share one sequence.

    Args:
        sampler: the sampler of the sequence.
        place: 0 takes the first point of each pair, 1 the second.
    """

    def __init__(self, sampler: Sampler, place: int) -> None:
        self._sampler, self._place = sampler, place

    def ask(self, num: int) -> list[Point]:
        """The next `num` of these points."""
        return self._sampler.ask(2 * num)[self._place :: 2]

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Ignored: the points do not depend on the model."""


SAMPLERS: Mapping[str, SamplerFactory] = MappingProxyType({"sobol": SobolSampler})
"""Built-in samplers by name (`attack.sampler`); `sdm_ray.sweep.search.samplers` adds Optuna's."""


def the_sampler(name: str, samplers: Mapping[str, SamplerFactory] = SAMPLERS) -> SamplerFactory:
    """Sampler by name.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in samplers:
        raise UsageError(f"attack.sampler: {name!r} is not there; known: {', '.join(samplers)}")
    return samplers[name]
