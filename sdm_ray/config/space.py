"""Distributions of searched settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdm_ray.config.base import Settings


class Conditional(Settings):
    """Searched only where other searched settings have certain values."""

    when: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    """Dotted path of a whole-number or categorical setting of the space to the value, or the values, with which this
    one is searched; otherwise it keeps the value of `trial`."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {path: held if isinstance(held, list | tuple) else [held] for path, held in value.items()}


class FloatDistribution(Conditional):
    """A real number between two bounds."""

    type: Literal["float"]
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Sample on a logarithmic scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low ({self.low:g}) must not exceed high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 on a logarithmic scale")
        return self


class IntDistribution(Conditional):
    """A whole number between two bounds, both included."""

    type: Literal["int"]
    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    log: bool = False
    """Sample on a logarithmic scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) must be above 0 on a logarithmic scale")
        return self


class CategoricalDistribution(Conditional):
    """One of a list of values (any YAML value)."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Any, ...], Field(min_length=1)]
    """The values."""


Distribution = Annotated[FloatDistribution | IntDistribution | CategoricalDistribution, Field(discriminator="type")]
