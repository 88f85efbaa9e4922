"""Trade-off between desired and harmful accuracy: points, dominance, hypervolume.

*Desired* is always maximised and *harmful* minimised. References (pretrained, random, tuned, AC) are shown beside the
frontier but are never part of it, nor are infeasible trials, trials that are no better than training from scratch, and
trials with a missing or non-finite objective.
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
"""Desired 0 and harmful 1, the worst possible accuracies, so that hypervolumes of any two sweeps are comparable."""
NUM_BOOTSTRAP = 1000
"""Number of bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial as a point in objective space."""

    trial_id: str
    method: str
    desired: float
    """Maximised; NaN if not measured."""
    harmful: float
    """Minimised; NaN if not measured."""
    feasible: bool = True
    """Whether it completed, meets the sweep's constraint, and passed the audit."""
    params: dict[str, Any] = field(default_factory=dict)
    """Searched settings by dotted path."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All metrics of the trial."""
    is_reference: bool = False
    superseded: bool = False
    """Attacked with a smaller budget than the sweep's finalists: shown, but not compared with them."""
    further: dict[str, float] = field(default_factory=dict)
    """Additional objectives by name, with signs such that less is better."""
    desired_interval: tuple[float, float] | None = None
    """95 % interval of `desired`."""
    harmful_interval: tuple[float, float] | None = None
    """95 % interval of `harmful`."""

    @property
    def dominated_by_scratch(self) -> bool:
        """Whether it is not better than `scratch` in what it keeps or blocks; False if not measured."""
        return not self.is_reference and is_dominated_by_scratch(self.metrics)

    @property
    def held_back(self) -> bool:
        """Whether it is off the front because of the audit."""
        return not self.is_reference and not self.feasible and self.metrics.get(Metric.AUDIT_PASSED) == 0.0

    @property
    def eligible(self) -> bool:
        """Whether it may be on the front."""
        measured = all(map(math.isfinite, (self.desired, self.harmful, *self.further.values())))
        kept_off = self.is_reference or self.superseded or self.dominated_by_scratch
        return self.feasible and measured and not kept_off


def is_dominated_by_scratch(metrics: Mapping[str, float]) -> bool:
    """Whether a trial's metrics (over all its seeds) show that it is no better than `scratch`."""
    return metrics.get(Metric.SCRATCH_DOMINATES) == 1.0


def point_from_result(
    result: TrialResult,
    *,
    is_reference: bool = False,
    desired_metric: str = Metric.DESIRED_ACCURACY,
    harmful_metric: str = Metric.HARMFUL_WORST_ACCURACY,
    further: Mapping[str, float] | None = None,
) -> Point:
    """Convert a trial's result to a point; a missing objective becomes NaN, which keeps it off the front.

    Args:
        result: the trial.
        is_reference: whether it is a reference model rather than a trial.
        desired_metric: metric to maximise.
        harmful_metric: metric to minimise.
        further: metrics of additional objectives: 1 to minimise, -1 to maximise.
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
    """Non-dominated points, sorted by desired accuracy (ascending).

    Of points with equal objectives only the first one is kept. O(N log N) for two objectives; moocore computes it for
    more.
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
    """Front with one more point added; for two objectives this is a binary search, not a full pass.

    Args:
        front: the result of `pareto_front`; it is not modified.
        point: any point.
    """
    if not point.eligible:
        return front
    if point.further or any(other.further for other in front[:1]):
        return pareto_front([*front, point])
    # Both objectives rise along the front: from `at` on, `desired` is at least as high, the least harmful first.
    at = bisect.bisect_left(front, point.desired, key=lambda other: other.desired)
    if at < len(front) and front[at].harmful <= point.harmful:
        return front
    first = bisect.bisect_left(front, point.harmful, hi=at, key=lambda other: other.harmful)
    last = at + (at < len(front) and front[at].desired == point.desired)
    return [*front[:first], point, *front[last:]]


def near_front(points: Sequence[Point]) -> list[Point]:
    """Points off the front whose 95 % intervals reach it: with favourable interval ends they are not dominated.

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
    """Area dominated by the front, bounded by `reference` = (desired, harmful); 0 if the front is empty.

    Computed by moocore. With the default reference it is in [0, 1]; points that do not dominate the reference add
    nothing. Additional objectives affect which points are on the front, but not the area.
    """
    front = pareto_front(points)
    if not front:
        return 0.0
    import moocore

    values = np.array([(point.desired, point.harmful) for point in front])
    return float(moocore.hypervolume(values, ref=list(reference), maximise=[True, False]))


class Difference(NamedTuple):
    """Difference of two hypervolumes with its 95 % interval."""

    value: float
    low: float
    high: float


def compare(first: Sequence[Point], second: Sequence[Point], *, seed: int = 0) -> Difference:
    """Hypervolume of the second sweep minus that of the first.

    The interval is the percentile bootstrap over trials (Efron 1979), independent for each sweep. It covers the
    variation of the search's draws for the same number of points, not the error of each accuracy.

    Args:
        first: all points of a sweep.
        second: all points of another.
        seed: seed of the bootstrap.
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
    """95 % interval of a metric; None if an end is missing or not finite."""
    low, high = metrics.get(Metric.low(name), math.nan), metrics.get(Metric.high(name), math.nan)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
