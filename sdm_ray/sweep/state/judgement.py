"""Combines the seeds' results of each point, decides its feasibility, and maintains the Pareto front."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from sdm_ray.config import SweepSettings
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import FINAL, Status, TrialResult
from sdm_ray.frontier.points import (
    Point,
    hypervolume,
    is_dominated_by_scratch,
    pareto_front,
    point_from_result,
    with_point,
)
from sdm_ray.sweep.search.models import axes, ordered_references
from sdm_ray.sweep.state.ledger import Role
from sdm_ray.sweep.state.seeds import combined

DESIRED, AUDIT, STOPPED, SCRATCH = "desired", "audit", "stopped", "scratch"
"""Names of the constraints. `scratch` affects only the sampler: a point that training from scratch dominates is marked
in figures, but is not infeasible."""
MEANT = (
    Metric.DESIRED_ACCURACY, Metric.HARMFUL_WORST_ACCURACY,
    Metric.KEPT_HARMFUL, Metric.KEPT_DESIRED, Metric.KEPT_BENIGN,
)  # fmt: skip
"""Metrics, in addition to the objectives, that get an interval over a point's seeds."""


class Judgement:
    """Points of a sweep, with their feasibility and the Pareto front.

    Feasibility is not stored with results: it is computed from the desired accuracy of the point and of the tuned
    reference, and from the audit. The cost of a new result does not grow with the number of points, except for the
    tuned reference and final attacks: the other points depend on them and are recomputed.
    """

    def __init__(self, settings: SweepSettings) -> None:
        self._search = settings.search
        self._references = ordered_references(settings)
        self._objectives = [objective.metric for objective in settings.objectives]
        self._intervals = {*self._objectives, *map(str, MEANT)}
        self._axes = axes(settings)
        self._ended: dict[tuple[Role, str], TrialResult] = {}
        self._final_points: set[str] = set()
        self._front: list[Point] | None = None
        self._clear_points()

    def expect_final(self, point: str) -> None:
        """Register a final attack that has begun; once all have ended, points without one are superseded."""
        self._final_points.add(point)

    def add(self, role: Role, point: str, results: Sequence[TrialResult]) -> None:
        """Add the results of a point's seeds; called once per point, when further seeds cannot change its outcome."""
        self._ended[role, point] = combined(results, point=point, intervals=self._intervals)
        if role == "search" or (role == "reference" and point != "tuned"):
            self._place(role, point)
        else:
            self._clear_points()
            for other_role, other in list(self._ended):
                if other_role != "final":
                    self._place(other_role, other)

    def ended(self, point: str, role: Role = "search") -> TrialResult | None:
        """Combined result of a point's seeds; None while its outcome is open."""
        return self._ended.get((role, point))

    def objective_problem(self, result: TrialResult) -> str | None:
        """Message about an objective of a complete trial that is missing or not finite; None if all are finite."""
        needed = dict.fromkeys(self._objectives)
        if self._search.max_desired_drop is not None:
            needed[str(Metric.DESIRED_ACCURACY)] = None
        for name in needed:
            if name not in result.metrics:
                return f"the trial reported no {name}"
            if not math.isfinite(result.metrics[name]):
                return f"{name} is {result.metrics[name]}"
        return None

    @property
    def desired_floor(self) -> float | None:
        """Minimum desired accuracy of a feasible point; None without a bound or without a result of `tuned`."""
        drop, tuned = self._search.max_desired_drop, self.ended("tuned", "reference")
        if drop is None or tuned is None or tuned.status is not Status.COMPLETE:
            return None
        return tuned.metrics[Metric.DESIRED_ACCURACY] - drop

    @property
    def floor_is_pending(self) -> bool:
        """Whether feasibility is unknown because the tuned reference has not ended."""
        return self._search.max_desired_drop is not None and self.ended("tuned", "reference") is None

    def violations(self, result: TrialResult) -> dict[str, float]:
        """Constraint violations of a point by name, as in Optuna: a value of at most 0 is feasible.

        A point that was pruned, or that stopped its own training because of the desired task, has a violation of 1.
        """
        if result.status is not Status.COMPLETE:
            return {DESIRED if result.status is Status.INFEASIBLE else STOPPED: 1.0}
        found, floor = {}, self.desired_floor
        if floor is not None:
            found[DESIRED] = floor - result.metrics.get(Metric.DESIRED_ACCURACY, -math.inf)
        if self._search.require_audit:
            found[AUDIT] = 1.0 - result.metrics.get(Metric.AUDIT_PASSED, 1.0)
        if Metric.SCRATCH_DOMINATES in result.metrics:
            found[SCRATCH] = float(is_dominated_by_scratch(result.metrics))
        return found

    def judged(self, result: TrialResult, role: Role = "search") -> TrialResult:
        """Set the status of a result to `infeasible` if it violates a constraint; references keep their status."""
        if result.status is not Status.COMPLETE or role == "reference" or result.trial_id in self._references:
            return result
        violations = self.violations(result)
        missed = [name for name in violations if name != SCRATCH and not violations[name] <= 0]
        if not missed:
            return result
        reasons = {
            DESIRED: f"desired accuracy {result.metrics.get(Metric.DESIRED_ACCURACY, math.nan):.3f} is below "
            f"{self.desired_floor or 0.0:.3f}",
            AUDIT: f"the audit failed ({failed_checks(result) or 'audit.json says which check'})",
        }
        error = "; ".join(reasons[name] for name in missed)
        return dataclasses.replace(result, status=Status.INFEASIBLE, error=error)

    def points(self) -> list[Point]:
        """Points for the frontier: references, then searched points by id, without failed and stopped ones.

        If feasibility depends on the tuned reference, no searched point is feasible before that reference has ended.
        """
        references = [self._points[method] for method in self._references if method in self._points]
        return references + self._listed

    def infeasible(self) -> dict[str, str]:
        """Reasons why searched points are infeasible, by id; from the final attack's result if there is one."""
        reasons = {}
        for point in self._searched:
            final = self._ended.get(("final", f"{point}{FINAL}"))
            judged = self.judged(self._ended["search", point] if final is None else final)
            if judged.status is Status.INFEASIBLE:
                reasons[point] = str(judged.error)
        return reasons

    def front(self) -> list[Point]:
        """Pareto front of `points`."""
        if self._front is None:
            self._front = pareto_front(self._points.values())
        return self._front

    def finalists(self, count: int) -> list[Point]:
        """At most `count` points, of the front before the final attack, with the largest hypervolume."""
        return spread(pareto_front(self._searched.values()), count)

    def counts(self) -> dict[Status, int]:
        """Number of searched points that have ended, by status."""
        return {status: self._counts[status] for status in Status}

    def _clear_points(self) -> None:
        self._searched: dict[str, Point] = {}
        self._ids: list[str] = []
        self._listed: list[Point] = []
        self._points: dict[str, Point] = {}
        self._counts: Counter[Status] = Counter()
        self._front = None

    def _place(self, role: Role, point: str) -> None:
        """Count a point, and add it to the points and to the front."""
        ended = self._ended[role, point]
        if role == "search":
            self._counts[self.judged(ended, role).status] += 1
        if ended.status is not Status.COMPLETE:
            return
        made = self._point(ended, role)
        if role == "search":
            self._searched[point] = made
        final = self._ended.get(("final", f"{point}{FINAL}"))
        if final is not None and final.status is Status.COMPLETE:
            made = self._point(dataclasses.replace(final, trial_id=point, params=ended.params), role)
        elif role == "search" and self._finals_have_ended():
            made = dataclasses.replace(made, superseded=True)
        self._points[point] = made
        if role == "search":
            at = bisect.bisect_left(self._ids, point)
            again = self._ids[at : at + 1] == [point]
            self._ids[at : at + again], self._listed[at : at + again] = [point], [made]
        if self._front is not None:
            self._front = with_point(self._front, made)

    def _point(self, result: TrialResult, role: Role) -> Point:
        made = point_from_result(self.judged(result, role), is_reference=role == "reference", **self._axes)
        unknown = role == "search" and self.floor_is_pending
        return dataclasses.replace(made, feasible=False) if unknown else made

    def _finals_have_ended(self) -> bool:
        return bool(self._final_points) and all(("final", point) in self._ended for point in self._final_points)


def failed_checks(result: TrialResult) -> str:
    """Failed audit checks of a trial with their findings; empty if none failed or none is recorded."""
    return "; ".join(f"{name.replace('_', ' ')}: {said}" for name, said in result.failed_checks.items())


def spread(front: Sequence[Point], count: int) -> list[Point]:
    """Greedily choose points of a front to maximise their hypervolume."""
    chosen: list[Point] = []
    while len(chosen) < min(count, len(front)):
        left = [point for point in front if point not in chosen]
        chosen.append(max(left, key=lambda point: (hypervolume([*chosen, point]), point.desired)))
    return chosen
