"""The trade-off between desired and harmful accuracy: dominance, hypervolume, selection rules, tables on disk.

Everywhere here *desired* is maximised and *harmful* is minimised. References (pretrained, random, tuned, AC) are drawn
beside the frontier and never belong to it; nor do infeasible trials, trials that are no better than training from
scratch and trials with a missing or non-finite objective.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult

REFERENCE_POINT = (0.0, 1.0)
"""Desired 0 and harmful 1, the worst that either share can be: hypervolumes of any two sweeps can be compared."""
NUM_BOOTSTRAP = 1000
"""Resamples of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial as a point in the space of objectives."""

    trial_id: str
    method: str
    desired: float
    """Maximised; NaN where it was not measured."""
    harmful: float
    """Minimised; NaN where it was not measured."""
    feasible: bool = True
    """Completed, within the sweep's constraint, and passed by the audit."""
    params: dict[str, Any] = field(default_factory=dict)
    """The searched settings by dotted path."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All metrics of the trial."""
    is_reference: bool = False
    superseded: bool = False
    """Attacked with a smaller budget than the finalists of its sweep: drawn, but not compared with them."""
    further: dict[str, float] = field(default_factory=dict)
    """Further objectives by name, turned so that less is better."""
    desired_interval: tuple[float, float] | None = None
    """95 % interval of `desired`."""
    harmful_interval: tuple[float, float] | None = None
    """95 % interval of `harmful`."""

    @property
    def dominated_by_scratch(self) -> bool:
        """Whether it is better than the reference `scratch` neither in what it keeps nor in what it blocks; where that
        was not measured it is not."""
        return not self.is_reference and is_dominated_by_scratch(self.metrics)

    @property
    def held_back(self) -> bool:
        """Whether the audit keeps it off the front."""
        return not self.is_reference and not self.feasible and self.metrics.get(Metric.AUDIT_PASSED) == 0.0

    @property
    def eligible(self) -> bool:
        """Whether it may stand on the front."""
        measured = all(map(math.isfinite, (self.desired, self.harmful, *self.further.values())))
        kept_off = self.is_reference or self.superseded or self.dominated_by_scratch
        return self.feasible and measured and not kept_off


def is_dominated_by_scratch(metrics: Mapping[str, float]) -> bool:
    """Whether the metrics of a trial (of all its seeds, where there are several) say that it is no better than
    `scratch`."""
    return metrics.get(Metric.SCRATCH_DOMINATES) == 1.0


def point_from_result(
    result: TrialResult,
    *,
    is_reference: bool = False,
    desired_metric: str = Metric.DESIRED_ACCURACY,
    harmful_metric: str = Metric.HARMFUL_WORST_ACCURACY,
    further: Mapping[str, float] | None = None,
) -> Point:
    """A trial's result as a point; a missing objective becomes NaN and so never stands on the front.

    Args:
        result: the trial.
        is_reference: whether it is a reference model rather than a trial.
        desired_metric: the metric to maximise.
        harmful_metric: the metric to minimise.
        further: metrics of further objectives, to 1 where they are minimised and -1 where they are maximised.
    """
    return Point(
        trial_id=result.trial_id,
        method=result.method,
        desired=result.metrics.get(desired_metric, math.nan),
        harmful=result.metrics.get(harmful_metric, math.nan),
        feasible=result.status is Status.COMPLETE and result.metrics.get(Metric.AUDIT_PASSED, 1.0) != 0.0,
        params=dict(result.params),
        metrics=dict(result.metrics),
        is_reference=is_reference,
        further={name: sign * result.metrics.get(name, math.nan) for name, sign in (further or {}).items()},
        desired_interval=interval_of(result.metrics, desired_metric),
        harmful_interval=interval_of(result.metrics, harmful_metric),
    )


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The non-dominated points, in order of rising desired accuracy.

    Of points with equal objectives only the first one given is kept. O(N log N) for two objectives; further ones are
    compared by moocore.
    """
    ranked = sorted((point for point in points if point.eligible), key=lambda point: (-point.desired, point.harmful))
    if any(point.further for point in ranked):
        return _front_of_many(ranked)
    front: list[Point] = []
    for point in ranked:
        if not front or point.harmful < front[-1].harmful:
            front.append(point)
    return front[::-1]


def with_point(front: list[Point], point: Point) -> list[Point]:
    """The front after one more point is added to it; with two objectives this takes a binary search, not a full pass.

    Args:
        front: the result of `pareto_front`; it is not modified.
        point: any point.
    """
    if not point.eligible:
        return front
    if point.further or any(other.further for other in front[:1]):
        return pareto_front([*front, point])
    # Both objectives rise along the front: from `at` on, points are at least as desired, the least harmful first.
    at = bisect.bisect_left(front, point.desired, key=lambda other: other.desired)
    if at < len(front) and front[at].harmful <= point.harmful:
        return front
    first = bisect.bisect_left(front, point.harmful, hi=at, key=lambda other: other.harmful)
    last = at + (at < len(front) and front[at].desired == point.desired)
    return [*front[:first], point, *front[last:]]


def near_front(points: Sequence[Point]) -> list[Point]:
    """Points off the front whose 95 % intervals reach it: at the favourable ends no point of the front dominates them.

    For two objectives only; points without intervals are left out.
    """
    front = pareto_front(points)
    fronted = {id(point) for point in front}
    near = []
    for point in points:
        intervals = (point.desired_interval, point.harmful_interval)
        if not point.eligible or id(point) in fronted or intervals == (None, None) or point.further:
            continue
        desired = point.desired if point.desired_interval is None else point.desired_interval[1]
        harmful = point.harmful if point.harmful_interval is None else point.harmful_interval[0]
        at = bisect.bisect_left(front, desired, key=lambda other: other.desired)
        if at == len(front) or front[at].harmful > harmful:
            near.append(point)
    return near


def _front_of_many(ranked: list[Point]) -> list[Point]:
    import moocore

    values = np.array([(-point.desired, point.harmful, *point.further.values()) for point in ranked])
    kept = moocore.is_nondominated(values, keep_weakly=False)
    return [point for point, keep in zip(ranked, kept, strict=True) if keep][::-1]


def hypervolume(points: Iterable[Point], reference: tuple[float, float] = REFERENCE_POINT) -> float:
    """The area that the front dominates, bounded by `reference` = (desired, harmful); 0 where the front is empty.

    Computed by moocore. With the default reference it lies in [0, 1]; points that do not dominate the reference add
    nothing. Further objectives decide which points stand on the front, and add nothing to the area.
    """
    front = pareto_front(points)
    if not front:
        return 0.0
    import moocore

    values = np.array([(point.desired, point.harmful) for point in front])
    return float(moocore.hypervolume(values, ref=list(reference), maximise=[True, False]))


class Difference(NamedTuple):
    """A difference of two hypervolumes with its 95 % interval."""

    value: float
    low: float
    high: float


def compare(first: Sequence[Point], second: Sequence[Point], *, seed: int = 0) -> Difference:
    """Hypervolume of the second sweep minus that of the first.

    The interval is the percentile bootstrap over trials (Efron 1979), drawn for each sweep independently. It covers
    what the same search might have found with other draws of as many points, not the error of each accuracy.

    Args:
        first: all points of a sweep.
        second: all points of another.
        seed: of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    difference = hypervolume(second) - hypervolume(first)
    draws = []
    for _ in range(NUM_BOOTSTRAP):
        volumes = []
        for points in (first, second):
            trials = [point for point in points if not point.is_reference]
            chosen = generator.integers(0, max(1, len(trials)), len(trials))
            volumes.append(hypervolume([trials[index] for index in chosen]))
        draws.append(volumes[1] - volumes[0])
    low, high = np.quantile(draws, [0.025, 0.975])
    return Difference(difference, float(low), float(high))


def interval_of(metrics: Mapping[str, float], name: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric; None where an end is missing or not finite."""
    low, high = metrics.get(Metric.low(name), math.nan), metrics.get(Metric.high(name), math.nan)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
