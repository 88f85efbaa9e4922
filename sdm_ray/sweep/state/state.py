"""What the driver knows of a sweep: plan, running trials, results, feasibility, points. Pure bookkeeping, no Ray."""

from __future__ import annotations

import bisect
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Sequence

from sdm_ray.config import SweepSettings
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import FINAL, Status, TrialResult
from sdm_ray.frontier.points import Point, hypervolume, pareto_front, point_from_result, with_point
from sdm_ray.sweep.search.models import axes, ordered_references, reference_settings
from sdm_ray.sweep.state.ledger import Entry, Ledger, Role
from sdm_ray.sweep.state.pruning import hopeless
from sdm_ray.sweep.state.seeds import combined
from sdm_ray.sweep.state.snapshot import Running, Snapshot

ROLES: tuple[Role, ...] = ("reference", "search", "final")
DESIRED, AUDIT, STOPPED = "desired", "audit", "stopped"
"""Names of the constraints."""


class SweepState:
    """The ledger's entries and what follows from them.

    A *point* is one or more trials that differ in their training seed. Feasibility is never stored: it follows from a
    point's and the tuned reference's desired accuracy, and from the audit. What a new trial changes is worked out from
    that trial alone, so that a long sweep costs no more a trial than a short one.
    """

    def __init__(self, settings: SweepSettings, ledger: Ledger, *, concurrency: int = 1) -> None:
        self.settings = settings
        self.ledger = ledger
        self.concurrency = concurrency
        self.running: dict[str, Running] = {}
        self.stopping: dict[str, str] = {}
        """Why running trials are being stopped."""
        self._started = time.monotonic()
        self._num_finished = 0
        self._earlier_seconds = ledger.elapsed
        self._intervals = {objective.metric for objective in settings.objectives} | {
            str(Metric.DESIRED_ACCURACY),
            str(Metric.HARMFUL_WORST_ACCURACY),
        }
        self._front: list[Point] | None = None
        self._axes = axes(settings)
        self._first_of: dict[str, Entry] = {}
        self._read_ledger()

    @property
    def references(self) -> list[str]:
        """Reference methods and variants in the order in which they run."""
        return ordered_references(self.settings)

    @property
    def num_seeds(self) -> int:
        """Training seeds of a point."""
        return self.settings.search.num_seeds

    @property
    def num_points(self) -> int:
        """Searched points that have begun."""
        return len(self._trials["search"])

    def entries(self, role: Role) -> list[Entry]:
        """Entries of a role, point by point in the order of their start."""
        return [entry for group in self._trials[role].values() for entry in group.values()]

    def point(self, trial_id: str) -> list[Entry]:
        """The trials of a searched point, by training seed."""
        return list(self._trials["search"][trial_id].values())

    def unfinished(self) -> list[Entry]:
        """Entries that began and have not ended: first the references in their order."""
        order: dict[str, int] = {method: rank for rank, method in enumerate(self.references)}
        return sorted(self._unfinished.values(), key=lambda entry: order.get(entry.point, len(order)))

    def planned(self) -> Entry | None:
        """The next trial that nobody has to be asked for: of a reference, a point's next seed, or the final attack."""
        for name in self.references:
            if (entry := self._next_seed("reference", self._reference(name))) is not None:
                return entry
        for point in self._incomplete:
            first = self._trials["search"][point][0]
            if (entry := self._next_seed("search", first)) is not None:
                return entry
        for first in self._finalists():
            if (entry := self._next_seed("final", first)) is not None:
                return entry
        return None

    def wants_point(self) -> bool:
        """Whether another point shall be searched."""
        return self.num_points < self.settings.search.num_trials and self.spent() is None

    def start(self, entry: Entry) -> Entry:
        """Record a trial before it runs; gives the ledger's own entry."""
        again = entry.trial_id in self.ledger.entries
        self.ledger.start(entry)
        if again:
            self._read_ledger()
        else:
            self._admit(self.ledger.entries[entry.trial_id])
        return self.ledger.entries[entry.trial_id]

    def restart_failed_references(self) -> None:
        """Begin failed references and final attacks afresh: unlike a searched trial they have no substitute."""
        for entry in (*self.entries("reference"), *self.entries("final")):
            if entry.result is not None and entry.result.status is Status.FAILED:
                self.start(dataclasses.replace(entry, result=None))

    def num_missing(self) -> int:
        """Trials that still have to run, begun or not."""
        return len(self._unfinished) + sum(self._num_unstarted().values())

    def spent(self) -> str | None:
        """Why no further trial may begin, where the budget of hours is spent."""
        search = self.settings.search
        if search.max_hours is not None and self.elapsed_seconds >= search.max_hours * 3600:
            return f"search.max_hours ({search.max_hours:g}) have passed"
        if search.max_gpu_hours is not None and self.gpu_hours >= search.max_gpu_hours:
            return f"search.max_gpu_hours ({search.max_gpu_hours:g}) are spent"
        return None

    @property
    def elapsed_seconds(self) -> float:
        """Wall-clock seconds of the sweep, earlier drivers' included (up to their last trial's end)."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def gpu_hours(self) -> float:
        """GPU hours that trials have occupied, running ones included."""
        running = sum(time.monotonic() - running.started for running in self.running.values())
        return (self._occupied + running) * self.settings.resources.gpus_per_trial / 3600

    def begin(self, trial_id: str) -> None:
        """A process has taken the trial up (again)."""
        if trial_id not in self.running:
            self.running[trial_id] = Running(self.ledger.entries[trial_id])

    def finish(self, result: TrialResult) -> TrialResult:
        """Record and return a trial's result: an objective that is missing or not finite is a failure."""
        entry = self.ledger.entries[result.trial_id]
        result = dataclasses.replace(result, params=entry.params)
        if result.status is Status.COMPLETE:
            problem = self._objective_problem(result)
            if problem:
                result = dataclasses.replace(result, status=Status.FAILED, error=problem)
        running = self.running.pop(result.trial_id, None)
        seconds = 0.0 if running is None else time.monotonic() - running.started
        self.ledger.finish(result, seconds=seconds, elapsed=self.elapsed_seconds)
        self._num_finished += 1
        self._take_end(entry)
        return result

    def at_rung(self, trial_id: str, step: int, desired: float, harmful: float) -> str | None:
        """Record what a trial measured at a rung; gives the reason where it shall be stopped for it."""
        before = self.ledger.rungs.get(step, {})
        if trial_id not in before:
            self.ledger.climb(trial_id, step, desired, harmful)
        entry = self.ledger.entries[trial_id]
        if entry.role != "search":
            return None
        searched = [
            values
            for other, values in before.items()
            if other != trial_id and self.ledger.entries[other].role == "search"
        ]
        reason = hopeless(self.settings.search, (desired, harmful), before.get("tuned"), searched)
        if reason is not None:
            self.stopping[trial_id] = f"stopped at outer step {step}: {reason}"
        return reason

    def ended(self, point: str, role: Role = "search") -> TrialResult | None:
        """The result of a point, all its seeds together; None while one is missing."""
        return self._ended.get((role, point))

    @property
    def desired_floor(self) -> float | None:
        """Least desired accuracy of a feasible point; None without a bound, or while or because tuned has no result."""
        drop, tuned = self.settings.search.max_desired_drop, self.ended("tuned", "reference")
        if drop is None or tuned is None or tuned.status is not Status.COMPLETE:
            return None
        return tuned.metrics[Metric.DESIRED_ACCURACY] - drop

    @property
    def floor_is_pending(self) -> bool:
        """Whether the tuned reference, which feasibility is relative to, is still to come."""
        return self.settings.search.max_desired_drop is not None and self.ended("tuned", "reference") is None

    def violations(self, result: TrialResult) -> dict[str, float]:
        """How far a point misses each constraint (at most 0: feasible).

        One that was stopped, or stopped itself because of the desired task, misses one by as much as can be.
        """
        if result.status is not Status.COMPLETE:
            return {DESIRED if result.status is Status.INFEASIBLE else STOPPED: 1.0}
        found, floor = {}, self.desired_floor
        if floor is not None:
            found[DESIRED] = floor - result.metrics.get(Metric.DESIRED_ACCURACY, -math.inf)
        if self.settings.search.require_audit:
            found[AUDIT] = 1.0 - result.metrics.get(Metric.AUDIT_PASSED, 1.0)
        return found

    def judged(self, result: TrialResult, role: Role = "search") -> TrialResult:
        """The result of a point with status `infeasible` where it misses a constraint; references keep theirs."""
        if result.status is not Status.COMPLETE or role == "reference" or result.trial_id in self.references:
            return result
        missed = [name for name, violation in self.violations(result).items() if not violation <= 0]
        if not missed:
            return result
        reasons = {
            DESIRED: f"desired accuracy {result.metrics.get(Metric.DESIRED_ACCURACY, math.nan):.3f} is below "
            f"{self.desired_floor or 0.0:.3f}",
            AUDIT: "the audit failed (audit.json says which check)",
        }
        error = "; ".join(reasons[name] for name in missed)
        return dataclasses.replace(result, status=Status.INFEASIBLE, error=error)

    def judged_trial(self, result: TrialResult) -> TrialResult:
        """The result of one trial: judged where it is a point of its own, for a point of several is judged whole."""
        entry = self.ledger.entries[result.trial_id]
        return result if self.num_seeds > 1 else self.judged(result, entry.role)

    def results(self) -> list[TrialResult]:
        """Results of trials that ended: references, then searched ones, then final attacks."""
        return [
            self.judged_trial(entry.result)
            for role in ROLES
            for entry in self.entries(role)
            if entry.result is not None
        ]

    def points(self) -> list[Point]:
        """Points for the frontier, references first, then searched ones by id; failed and stopped ones are none.

        Feasibility is unknown while tuned runs.
        """
        references = [self._points[method] for method in self.references if method in self._points]
        return references + self._listed

    def infeasible(self) -> dict[str, str]:
        """Why searched points miss a constraint, by id; under the final attack where they have faced it."""
        reasons = {}
        for point in self._searched:
            final = self._ended.get(("final", f"{point}{FINAL}"))
            judged = self.judged(self._ended["search", point] if final is None else final)
            if judged.status is Status.INFEASIBLE:
                reasons[point] = str(judged.error)
        return reasons

    def front(self) -> list[Point]:
        """The Pareto front of `points`."""
        if self._front is None:
            self._front = pareto_front(self._points.values())
        return self._front

    def snapshot(self) -> Snapshot:
        """What a view shows now."""
        references = (self.ended(method, "reference") for method in self.references)
        return Snapshot(
            name=self.settings.name,
            num_trials=self.settings.search.num_trials,
            num_references=len(self.references) * self.num_seeds,
            num_references_done=sum(entry.result is not None for entry in self.entries("reference")),
            counts={status: self._counts[status] for status in Status},
            references=tuple(result for result in references if result is not None),
            running=tuple(self.running.values()),
            front=tuple(self.front()),
            elapsed_seconds=self.elapsed_seconds,
            seconds_left=self._seconds_left(),
            trials_per_hour=self._trials_per_hour(),
        )

    def _read_ledger(self) -> None:
        self._trials: dict[Role, dict[str, dict[int, Entry]]] = {role: {} for role in ROLES}
        self._num_begun: Counter[Role] = Counter()
        self._unfinished: dict[str, Entry] = {}
        self._incomplete: dict[str, None] = {}
        self._num_skipped = 0
        self._occupied = 0.0
        self._durations: dict[Role, list[float]] = {role: [0.0, 0] for role in ROLES}
        self._ended: dict[tuple[Role, str], TrialResult] = {}
        self._chosen: list[Entry] | None = None
        self._searched: dict[str, Point] = {}
        self._ids: list[str] = []
        self._listed: list[Point] = []
        self._points: dict[str, Point] = {}
        self._counts: Counter[Status] = Counter()
        self._front = None
        for entry in self.ledger.entries.values():
            self._admit(entry)
        for entry in self.ledger.entries.values():
            if entry.result is not None:
                self._take_end(entry)

    def _admit(self, entry: Entry) -> None:
        """A trial that has begun."""
        group = self._trials[entry.role].setdefault(entry.point, {})
        self._num_begun[entry.role] += entry.seed_index not in group
        group[entry.seed_index] = entry
        self._unfinished[entry.trial_id] = entry
        if entry.role == "search":
            if len(group) < self.num_seeds:
                self._incomplete[entry.point] = None
            else:
                self._incomplete.pop(entry.point, None)

    def _take_end(self, entry: Entry) -> None:
        """A trial that has ended."""
        self._unfinished.pop(entry.trial_id, None)
        self._occupied += entry.seconds
        assert entry.result is not None
        if entry.seconds and entry.result.status is not Status.FAILED:
            self._durations[entry.role][0] += entry.seconds
            self._durations[entry.role][1] += 1
        group = self._trials[entry.role][entry.point]
        results = [group[index].result for index in sorted(group)]
        finished = [result for result in results if result is not None]
        lost = entry.role == "search" and any(result.status is not Status.COMPLETE for result in finished)
        if (len(finished) < self.num_seeds and not lost) or (entry.role, entry.point) in self._ended:
            return
        if lost:  # a point counts only whole: its other seeds need not begin
            self._incomplete.pop(entry.point, None)
            self._num_skipped += self.num_seeds - len(group)
        self._ended[entry.role, entry.point] = combined(finished, point=entry.point, intervals=self._intervals)
        if entry.role == "search" or (entry.role == "reference" and entry.point != "tuned"):
            self._judge(entry.role, entry.point)
        else:
            self._judge_all()  # the tuned reference tells what is feasible, a final attack what stands back

    def _judge_all(self) -> None:
        self._searched.clear()
        self._ids.clear()
        self._listed.clear()
        self._points.clear()
        self._counts.clear()
        self._front = None
        for role, point in list(self._ended):
            if role != "final":
                self._judge(role, point)

    def _judge(self, role: Role, point: str) -> None:
        """Count a point and put it on the chart."""
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
        elif role == "search" and self._finals_are_in():
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

    def _reference(self, name: str) -> Entry:
        """The first trial of a reference, made once: its settings are validated for it."""
        if name not in self._first_of:
            method = reference_settings(self.settings, name).train.method
            self._first_of[name] = Entry(name, "reference", method, params=self.settings.variants.get(name, {}))
        return self._first_of[name]

    def _next_seed(self, role: Role, first: Entry) -> Entry | None:
        """The first seed of a point that has not begun."""
        begun = self._trials[role].get(first.point, {})
        for index in range(self.num_seeds):
            if index not in begun:
                trial_id = first.point if index == 0 else seed_id(first.point, index)
                return dataclasses.replace(first, trial_id=trial_id, role=role, seed_index=index, result=None)
        return None

    def _finalists(self) -> list[Entry]:
        """First trials of the final stage once the search has ended: of the front's best points, then of references."""
        final = self.settings.final
        if final is None or self.wants_point() or self._is_searching():
            return []
        if self._chosen is None:
            best = spread(pareto_front(self._searched.values()), final.num_points)
            firsts = [self._trials["search"][point.trial_id][0] for point in best]
            firsts += [self._reference(name) for name in self.references if self._is_complete(name)]
            self._chosen = [
                Entry(f"{first.point}{FINAL}", "final", first.method, params=first.params) for first in firsts
            ]
        return self._chosen

    def _is_searching(self) -> bool:
        """Whether a trial that comes before the final stage has not ended."""
        unfinished = any(entry.role != "final" for entry in self._unfinished.values())
        references = any(self.ended(method, "reference") is None for method in self.references)
        return unfinished or references or bool(self._incomplete)

    def _is_complete(self, method: str) -> bool:
        ended = self.ended(method, "reference")
        return ended is not None and ended.status is Status.COMPLETE

    def _finals_are_in(self) -> bool:
        """Whether every final attack has ended, so that points without one stand back."""
        finals = self._trials["final"]
        return bool(finals) and all(("final", point) in self._ended for point in finals)

    def _objective_problem(self, result: TrialResult) -> str | None:
        needed = dict.fromkeys([objective.metric for objective in self.settings.objectives])
        if self.settings.search.max_desired_drop is not None:
            needed[str(Metric.DESIRED_ACCURACY)] = None
        for name in needed:
            if name not in result.metrics:
                return f"the trial reported no {name}"
            if not math.isfinite(result.metrics[name]):
                return f"{name} is {result.metrics[name]}"
        return None

    def _num_unstarted(self) -> dict[Role, int]:
        """Trials that have not begun, as far as they are known, by role."""
        begun = self._num_begun
        references = len(self.references) * self.num_seeds - begun["reference"]
        points = self.num_points if not self.wants_point() else self.settings.search.num_trials
        finals = len(self._finalists()) * self.num_seeds - begun["final"]
        search = points * self.num_seeds - begun["search"] - self._num_skipped
        return {"reference": max(0, references), "search": max(0, search), "final": max(0, finals)}

    def _trials_per_hour(self) -> float | None:
        hours = (time.monotonic() - self._started) / 3600
        return self._num_finished / hours if self._num_finished else None

    def _seconds_left(self) -> float | None:
        total, count = (sum(self._durations[role][i] for role in ROLES) for i in (0, 1))
        if not count:
            return None
        means = {role: sums[0] / sums[1] if sums[1] else total / count for role, sums in self._durations.items()}
        left = sum(number * means[role] for role, number in self._num_unstarted().items())
        for entry in self._unfinished.values():
            running = self.running.get(entry.trial_id)
            spent = time.monotonic() - running.started if running else 0.0
            left += max(means[entry.role] - spent, 0.1 * means[entry.role])
        left /= max(1, self.concurrency)
        hours = self.settings.search.max_hours
        return left if hours is None else min(left, max(0.0, hours * 3600 - self.elapsed_seconds))


def seed_id(point: str, index: int) -> str:
    """Id of a further training seed's trial."""
    if point.endswith(FINAL):
        return f"{point.removesuffix(FINAL)}-s{index}{FINAL}"
    return f"{point}-s{index}"


def spread(front: Sequence[Point], count: int) -> list[Point]:
    """The points of a front that together dominate most, found one after the other."""
    chosen: list[Point] = []
    while len(chosen) < min(count, len(front)):
        left = [point for point in front if point not in chosen]
        chosen.append(max(left, key=lambda point: (hypervolume([*chosen, point]), point.desired)))
    return chosen
