"""Metrics of a user's own: functions of a released model, measured by every trial once it has been attacked.

They are reported beside the others, and a sweep may optimise them.
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
    """The argument of a user's metric."""

    trunk: Trunk
    """The architecture: a module that is called through `torch.func.functional_call` with the weights."""
    params: Params
    """The released weights by name."""
    desired_head: Tensor | None
    """(C, D) head of the desired task; None where none was released."""
    data: AttackDataset
    """All splits, those of the attacker and the test examples among them."""
    report: AttackReport
    """The attack on the harmful task: every search, re-run and cell."""
    metrics: Mapping[str, float]
    """The trial's other metrics, by name."""


TAKEN = frozenset(str(metric).split("/")[0] for metric in Metric) | {"benign", "rung", "again", "information"}
"""Prefixes of the names of this package's metrics."""

Function = TypeVar("Function", bound=Callable[[Measured], float])


def trial_metric(name: str) -> Callable[[Function], Function]:
    """Register a metric by name, such as `mine/spread`.

    The same function may be registered again, as happens when a notebook's cell runs twice; the later one counts.

    Raises:
        ValueError: for a name that cannot be one, begins as those of this package, or belongs to another function.
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
    """All registered metrics of a model; one that is not finite is left out.

    Raises:
        RunError: when a function fails.
    """
    found = {}
    for name, function in OWN_METRICS.items():
        try:
            value = float(function(measured))
        except Exception as error:  # whatever a user's function raises means the same
            where = f"{function.__module__}.{function.__qualname__}"
            raise RunError(f"metric {name!r} ({where}) failed: {type(error).__name__}: {error}") from error
        if math.isfinite(value):
            found[name] = value
    return found
