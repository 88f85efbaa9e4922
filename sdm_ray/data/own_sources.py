"""User-registered data sources, by the name in `data.source`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from sdm_ray.config import DataSettings
from sdm_ray.core.errors import RunError, UsageError

Reader = Callable[[DataSettings], pa.Table | Mapping[str, Sequence[Any]]]
"""Returns a table, or columns by name, with the same rows at every call: texts, both labels, and other columns in the
settings."""
OWN_SOURCES: dict[str, Reader] = {}
"""Readers by name."""
TAKEN = ("synthetic", "regression", "pretraining")

Function = TypeVar("Function", bound=Reader)


def data_source(name: str) -> Callable[[Function], Function]:
    """Register a function that returns a table, for use in `data.source`.

    The same function may be registered again, for example if a notebook cell runs twice; the later one counts.

    Raises:
        ValueError: for a name that could be a file or a hub dataset, is taken, or belongs to another function.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name) or name in TAKEN:
        raise ValueError(
            f"{name!r} cannot name a source of data: use letters, digits, _ and -, and none of {', '.join(TAKEN)}"
        )

    def register(function: Function) -> Function:
        known = OWN_SOURCES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"source of data {name!r} is already registered; choose another name")
        OWN_SOURCES[name] = function
        return function

    return register


def read_own(settings: DataSettings) -> pa.Table:
    """Read the table of the source in `data.source`.

    Raises:
        UsageError: if the function fails or does not return a table.
    """
    function = OWN_SOURCES[settings.source]
    try:
        found = function(settings)
        return found if isinstance(found, pa.Table) else pa.table(dict(found))
    except (UsageError, RunError):
        raise
    except Exception as error:  # a user's function may raise anything
        where = f"{function.__module__}.{function.__qualname__}"
        raise UsageError(
            f"data.source {settings.source!r} ({where}) gives no table: {type(error).__name__}: {error}"
        ) from error
