"""Head starts kept: remaining shares of pretraining's benefit on benign tasks and on the harmful one.

The ideal is (1, 0): all of the benign benefit and none of the harmful one. Training from scratch is (0, 0), the public
encoder (1, 1). On the diagonal between them both shrink equally, which is forgetting; blocking is below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdm_ray.core.metric_names import Metric
from sdm_ray.frontier.points import Point, interval_of, pareto_front

UNMEASURED = "measured without scratch: no head start kept is known; attack again to get it"
"""Note for results from before the reference `scratch` existed."""
WORDS = {Metric.KEPT_BENIGN: "benign tasks", Metric.KEPT_DESIRED: "the desired task"}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Shares of head starts that a model keeps; below 0 it is worse than `scratch`, above 1 better than public."""

    good: float
    """Share on benign tasks, or on the desired one if those were not measured; NaN if unknown."""
    harmful: float
    """Share on the harmful task; NaN if unknown."""
    good_interval: tuple[float, float] | None
    """95 % interval of `good`."""
    harmful_interval: tuple[float, float] | None

    @property
    def known(self) -> bool:
        """Whether both are finite."""
        return math.isfinite(self.good) and math.isfinite(self.harmful)


def good_metric(points: Iterable[Point]) -> Metric:
    """Metric of the benefit to keep: on benign tasks if any point has it, otherwise on the desired task."""
    points = list(points)
    benign = any(Metric.KEPT_BENIGN in point.metrics for point in points)
    desired = any(Metric.KEPT_DESIRED in point.metrics for point in points)
    return Metric.KEPT_DESIRED if desired and not benign else Metric.KEPT_BENIGN


def kept(point: Point, good: Metric) -> Kept:
    """Head starts kept by a point; `good` is the result of `good_metric` for all points."""
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
    """`UNMEASURED` if it applies to a point of the front (to any trial if the front is empty), otherwise None."""
    shown = pareto_front(points) or [point for point in points if not point.is_reference]
    return UNMEASURED if any(is_unmeasured(point.metrics) for point in shown) else None
