"""The base of every settings class: immutable, unknown keys are errors, every field has a description."""

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
"""Upper bound of counts."""
WIDEST = 2**20
"""Upper bound of a batch's dimensions; a larger tensor would not fit into memory."""
_FLOAT32_MOST = 3.4e38

PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
BatchSize = Annotated[int, Field(ge=1, le=WIDEST)]
Seed = Annotated[int, Field(ge=0, le=2**62)]
"""Less than a generator's largest seed, so that seeds can be derived by addition."""
PositiveFloat = Annotated[float, Field(gt=0, le=_FLOAT32_MOST, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=_FLOAT32_MOST, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Immutable settings. Unknown keys are errors. The docstring below a field becomes its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Settings that were added after results were published. Their defaults reproduce the earlier behaviour; `identity`
    leaves them out at their defaults, so that hashes of earlier results do not change."""
    MEANT: ClassVar[dict[str, dict[Any, Any]]] = {}
    """By setting, values that `identity` replaces by what an omitted setting meant when results were published. Code
    that computes results must resolve such a value first, so that different results have different hashes."""

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Reject booleans as numbers. (Unions with a discriminator do not allow a validator per field, so errors get
        their location here.)"""
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
        """JSON values that identify what these settings compute; digests are computed from them."""
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
    """Whether a value is a boolean, or a list or mapping that contains one."""
    if isinstance(value, list | tuple):
        return any(map(_holds_truth, value))
    return any(map(_holds_truth, value.values())) if isinstance(value, Mapping) else isinstance(value, bool)


@cache
def _is_number(settings: type[Settings], name: str) -> bool:
    """Whether a setting's type allows numbers (also within lists and mappings), but neither booleans nor any value."""
    if name not in settings.model_fields:
        return False
    leaves = set(_leaves(settings.model_fields[name].annotation))
    return bool(leaves & {int, float}) and not leaves & {bool, Any}


def _leaves(annotation: Any) -> Iterator[Any]:
    """The innermost types of an annotation."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for part in inner:
        if not isinstance(part, str | int | float):  # a value of Literal
            yield from _leaves(part)


class LogRange(Settings):
    """A positive range, bounds included, that is sampled on a logarithmic scale."""

    low: PositiveFloat
    """Smallest value."""
    high: PositiveFloat
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must not exceed high ({self.high:g})")
        return self
