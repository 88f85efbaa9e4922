"""The base of every settings class: immutable, closed to unknown keys, documented field by field."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Immutable settings; unknown keys are refused; the docstring below a field becomes its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Settings that came after results were published; at their defaults they compute what was computed without them,
    and are left out of `identity`, so that hashes of earlier results stay."""
    MEANT: ClassVar[dict[str, dict[Any, Any]]] = {}
    """Values by setting that `identity` writes as others: what leaving the setting out meant when results were
    published. Whoever computes something settles such a value first, so that no two results share a hash."""

    def identity(self, *, exclude: set[str] | None = None) -> dict[str, Any]:
        """Plain values that identify what these settings compute: what digests are made of."""
        return self.model_dump(mode="json", exclude=exclude, context={"identity": True})

    @model_serializer(mode="wrap")
    def _serialise(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not (info.context and info.context.get("identity")):
            return values
        fields = type(self).model_fields
        return {
            name: self.MEANT[name].get(value, value) if name in self.MEANT else value
            for name, value in values.items()
            if name not in self.LATER or getattr(self, name) != fields[name].default
        }


class LogRange(Settings):
    """A positive range that is sampled on a logarithmic scale; both ends included."""

    low: PositiveFloat
    """Smallest value."""
    high: PositiveFloat
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must not exceed high ({self.high:g})")
        return self
