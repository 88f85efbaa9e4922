"""Distributions of searched settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdm_ray.config.base import PositiveFloat, PositiveInt, Settings

GRID_TOLERANCE = 1e-8
"""Largest distance of a number from a grid point, as a fraction of a step (Optuna's tolerance)."""


class Conditional(Settings):
    """A setting that is searched only if other searched settings have certain values."""

    LATER: ClassVar[frozenset[str]] = frozenset({"step"})

    when: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    """Condition: the value or values by dotted path, for integer or categorical settings of the space. This setting is
    searched only if all of them match; otherwise it has the value in `trial`."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {path: held if isinstance(held, list | tuple) else [held] for path, held in value.items()}


def on_grid(value: float, low: float, step: float | None) -> bool:
    """Whether a number is `low` plus an integer multiple of `step`, up to rounding; always true without a step."""
    if step is None or not math.isfinite(value):
        return True
    steps = (value - low) / step
    return abs(steps - round(steps)) < GRID_TOLERANCE


def _check_step(distribution: FloatDistribution | IntDistribution) -> None:
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is None:
        return
    if distribution.log:
        raise ValueError(f"step ({step:g}) and log exclude each other: drop one of them")
    if math.isfinite(low) and not on_grid(high, low, step):
        last = low + step * math.floor((high - low) / step)
        raise ValueError(
            f"high ({high:g}) must be low ({low:g}) plus whole steps of {step:g}; {last:g} is the last one"
        )


class FloatDistribution(Conditional):
    """A real number between two bounds."""

    type: Literal["float"]
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Sample on a logarithmic scale."""
    step: PositiveFloat | None = None
    """Only low, low + step and so on up to high; None allows every number between them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low ({self.low:g}) must not exceed high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 on a logarithmic scale")
        _check_step(self)
        return self


class IntDistribution(Conditional):
    """An integer between two bounds, both included."""

    type: Literal["int"]
    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    log: bool = False
    """Sample on a logarithmic scale."""
    step: PositiveInt | None = None
    """Only low, low + step and so on up to high; None allows every integer between them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) must be above 0 on a logarithmic scale")
        _check_step(self)
        return self


class CategoricalDistribution(Conditional):
    """One of a list of values (any YAML value)."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Any, ...], Field(min_length=1)]
    """The values."""


Distribution = Annotated[FloatDistribution | IntDistribution | CategoricalDistribution, Field(discriminator="type")]
