"""Data sources that a user registers, by the name in `data.source`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from sdm_ray.config import DataSettings
from sdm_ray.core.errors import RunError, UsageError

Reader = Callable[[DataSettings], pa.Table | Mapping[str, Sequence[Any]]]
"""A table, or columns by name, with equal rows at every call: texts, both labels, and what else the settings name."""
OWN_SOURCES: dict[str, Reader] = {}
"""Readers by name."""
TAKEN = ("synthetic", "regression", "pretraining")

Function = TypeVar("Function", bound=Reader)


def data_source(name: str) -> Callable[[Function], Function]:
    """Register a function that gives a table, to be named in `data.source`.

    The same function may be registered again, as happens when a notebook's cell runs twice; the later one counts.

    Raises:
        ValueError: for a name that may mean a file or a dataset of the hub, is taken, or belongs to another function.
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
    """The table of the source that `data.source` names.

    Raises:
        UsageError: when the function fails, or gives no table.
    """
    function = OWN_SOURCES[settings.source]
    try:
        found = function(settings)
        return found if isinstance(found, pa.Table) else pa.table(dict(found))
    except (UsageError, RunError):
        raise
    except Exception as error:  # whatever a user's function raises means the same
        where = f"{function.__module__}.{function.__qualname__}"
        raise UsageError(
            f"data.source {settings.source!r} ({where}) gives no table: {type(error).__name__}: {error}"
        ) from error
