"""User-defined metrics: functions of a released model, evaluated in every trial after the attack.

They are reported with the built-in metrics, and a sweep may optimise them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sdm_ray.core.errors import RunError
from sdm_ray.core.metric_names import OWN_METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from sdm_ray.attack.report import AttackReport
    from sdm_ray.core.types import Params
    from sdm_ray.data.interface import AttackDataset
    from sdm_ray.models.encoder import Trunk


class Measured(NamedTuple):
    """Argument of a user-defined metric."""

    trunk: Trunk
    """Architecture: a module to call with the weights through `torch.func.functional_call`."""
    params: Params
    """Released weights by name."""
    desired_head: Tensor | None
    """(C, D) head of the desired task; None if none was released."""
    data: AttackDataset
    """All splits, including the attacker's and the test examples."""
    report: AttackReport
    """Attack on the harmful task: all searches, re-runs and cells."""
    metrics: Mapping[str, float]
    """Other metrics of the trial, by name."""


TAKEN = frozenset(str(metric).split("/")[0] for metric in Metric) | {"benign", "rung", "again", "information"}
"""Prefixes of this package's metric names."""

Function = TypeVar("Function", bound=Callable[[Measured], float])


def trial_metric(name: str) -> Callable[[Function], Function]:
    """Register a metric by name, such as `mine/spread`.

    The same function may be registered again, for example if a notebook cell runs twice; the later one counts.

    Raises:
        ValueError: for a name that is invalid, has a prefix of this package, or belongs to another function.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+", name) or name.split("/")[0] in TAKEN:
        raise ValueError(
            f"{name!r} cannot name a metric: write a word of your own, a slash and a name, such as mine/spread; "
            f"{', '.join(sorted(TAKEN))} are taken"
        )

    def register(function: Function) -> Function:
        known = OWN_METRICS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"metric {name!r} is already registered; choose another name")
        OWN_METRICS[name] = function
        return function

    return register


def own_metrics(measured: Measured) -> dict[str, float]:
    """Evaluate all registered metrics of a model; non-finite values are left out.

    Raises:
        RunError: if a function fails.
    """
    found = {}
    for name, function in OWN_METRICS.items():
        try:
            value = float(function(measured))
        except Exception as error:  # a user's function may raise anything
            where = f"{function.__module__}.{function.__qualname__}"
            raise RunError(f"metric {name!r} ({where}) failed: {type(error).__name__}: {error}") from error
        if math.isfinite(value):
            found[name] = value
    return found
