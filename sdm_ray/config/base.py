"""The base of every settings class: immutable, without unknown keys, documented field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

MOST = 2**31 - 1
"""The largest count."""
WIDEST = 2**20
"""The largest dimension of a batch; a larger tensor would exceed any memory."""
_FLOAT32_MOST = 3.4e38

PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
BatchSize = Annotated[int, Field(ge=1, le=WIDEST)]
Seed = Annotated[int, Field(ge=0, le=2**62)]
"""Below what generators take, so that seeds can be derived by addition."""
PositiveFloat = Annotated[float, Field(gt=0, le=_FLOAT32_MOST, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=_FLOAT32_MOST, allow_inf_nan=False)]
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

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Discriminators allow no validator of single fields, so the errors get their places here."""
        if not isinstance(values, dict):
            return values
        wrong = {name: value for name, value in values.items() if _holds_truth(value) and _is_number(cls, name)}
        if wrong:
            rule = "must be a number (yes, on and true are no 1, and no, off and false no 0)"
            errors = [
                InitErrorDetails(type=PydanticCustomError("truth", rule), loc=(name,), input=value)
                for name, value in wrong.items()
            ]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return values

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


def _holds_truth(value: Any) -> bool:
    """Whether a value is true or false, or a list or mapping with one in it."""
    if isinstance(value, list | tuple):
        return any(map(_holds_truth, value))
    return any(map(_holds_truth, value.values())) if isinstance(value, Mapping) else isinstance(value, bool)


@cache
def _is_number(settings: type[Settings], name: str) -> bool:
    """Whether a setting takes numbers, alone or in lists and mappings, and neither true nor whatever there is."""
    if name not in settings.model_fields:
        return False
    leaves = set(_leaves(settings.model_fields[name].annotation))
    return bool(leaves & {int, float}) and not leaves & {bool, Any}


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for part in inner:
        if not isinstance(part, str | int | float):  # a value of Literal
            yield from _leaves(part)


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
