"""Loads functions that run trials from names `module:function`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Generator
from importlib.machinery import PathFinder

from sdm_ray.core.errors import UsageError
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import TrialResult

TrialFunction = Callable[..., Generator[Progress, None, TrialResult]]


def load_function(name: str) -> TrialFunction:
    """Import the function `module:function`."""
    module, _, function = name.partition(":")
    loaded: TrialFunction = getattr(importlib.import_module(module), function)
    return loaded


def check_function(name: str) -> None:
    """Check that the module of `module:function` exists, without importing it or its packages.

    Raises:
        UsageError: if the name has another form or the module is not found.
    """
    module, separator, function = name.partition(":")
    if not (separator and function and _is_module(module)):
        raise UsageError(f"trial_function {name!r} is not found; write it as module:function")


def _is_module(name: str) -> bool:
    """Whether a module exists. `importlib.util.find_spec` alone would import its parent packages, and so torch."""
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    for part in parts:
        if spec is None or not part:
            return False
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations or [])
    return spec is not None
