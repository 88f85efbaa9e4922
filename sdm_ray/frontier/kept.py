"""Head starts kept: shares of pretraining's benefit that are left on benign tasks and on the harmful one.

The ideal is (1, 0): all of the benign and none of the harmful benefit. Training from scratch is (0, 0), the public
encoder (1, 1). On the diagonal between them both shrink alike, which is forgetting; blocking lies below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdm_ray.core.metric_names import Metric
from sdm_ray.frontier.points import Point, interval_of, pareto_front

UNMEASURED = "measured without scratch: no head start kept is known; attack again to get it"
"""The note on results that were written before the reference `scratch` existed."""
WORDS = {Metric.KEPT_BENIGN: "benign tasks", Metric.KEPT_DESIRED: "the desired task"}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Shares of head starts that a model keeps; below 0 it is worse than `scratch`, above 1 better than public."""

    good: float
    """On benign tasks, or on the desired one where those were not measured; NaN where it is unknown."""
    harmful: float
    """On the harmful task; NaN where it is unknown."""
    good_interval: tuple[float, float] | None
    """95 % interval."""
    harmful_interval: tuple[float, float] | None

    @property
    def known(self) -> bool:
        """Whether both are finite."""
        return math.isfinite(self.good) and math.isfinite(self.harmful)


def good_metric(points: Iterable[Point]) -> Metric:
    """The metric of what should be kept: of benign tasks where any point has it, else of the desired task."""
    points = list(points)
    benign = any(Metric.KEPT_BENIGN in point.metrics for point in points)
    desired = any(Metric.KEPT_DESIRED in point.metrics for point in points)
    return Metric.KEPT_DESIRED if desired and not benign else Metric.KEPT_BENIGN


def kept(point: Point, good: Metric) -> Kept:
    """The head starts that a point keeps; `good` is the result of `good_metric` for all points."""
    return Kept(
        good=point.metrics.get(good, math.nan),
        harmful=point.metrics.get(Metric.KEPT_HARMFUL, math.nan),
        good_interval=interval_of(point.metrics, good),
        harmful_interval=interval_of(point.metrics, Metric.KEPT_HARMFUL),
    )


def is_unmeasured(metrics: Mapping[str, float]) -> bool:
    """Whether the metrics of an attack lack the reference `scratch`."""
    return Metric.KEPT_HARMFUL not in metrics and Metric.SCRATCH_HARMFUL not in metrics


def kept_note(points: Sequence[Point]) -> str | None:
    """`UNMEASURED` where it holds of a point of the front (of any trial, where the front is empty), else None."""
    shown = pareto_front(points) or [point for point in points if not point.is_reference]
    return UNMEASURED if any(is_unmeasured(point.metrics) for point in shown) else None
