"""What the driver knows of a sweep: plan, running trials, results, feasibility, points. Pure bookkeeping, no Ray."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sdm_ray.config import Method, SweepSettings
from sdm_ray.frontier import Point, pareto_front, point_from_result
from sdm_ray.sweep.ledger import Entry, Ledger
from sdm_ray.sweep.space import ordered_references
from sdm_ray.types import Metric, Status, TrialResult


@dataclass
class Running:
    """A trial that occupies a process."""

    entry: Entry
    started: float = field(default_factory=time.monotonic)
    stage: str = "starting"
    done: int = 0
    total: int = 0
    retries: int = 0
    last_error: str | None = None

    @property
    def share(self) -> float:
        """Share of the current stage that is done."""
        return self.done / self.total if self.total else 0.0


@dataclass(frozen=True)
class Snapshot:
    """What a view shows."""

    name: str
    num_trials: int
    """Searched trials in all."""
    num_references: int
    counts: dict[Status, int]
    """Searched trials that ended, by status."""
    references: tuple[TrialResult, ...]
    running: tuple[Running, ...]
    front: tuple[Point, ...]
    elapsed_seconds: float
    seconds_left: float | None
    """None until a trial has finished."""

    @property
    def num_done(self) -> int:
        """Searched trials that ended, whatever their status."""
        return sum(self.counts.values())


class SweepState:
    """The ledger's entries and what follows from them.

    Feasibility is never stored: it follows from a trial's and the tuned reference's desired accuracy.
    """

    def __init__(self, settings: SweepSettings, ledger: Ledger, *, concurrency: int = 1) -> None:
        self.settings = settings
        self.ledger = ledger
        self.concurrency = concurrency
        self.running: dict[str, Running] = {}
        self._started = time.monotonic()
        self._seconds: dict[str, list[float]] = {"reference": [], "search": []}

    @property
    def references(self) -> list[Method]:
        """Reference methods in the order in which they run."""
        return ordered_references(self.settings)

    def entries(self, role: str) -> list[Entry]:
        """Entries of a role, in the order of their start."""
        return [entry for entry in self.ledger.entries.values() if entry.role == role]

    def unfinished(self) -> list[Entry]:
        """Entries that began and have not ended: first the references in their order."""
        order: dict[str, int] = {method: rank for rank, method in enumerate(self.references)}
        waiting = [entry for entry in self.ledger.entries.values() if entry.result is None]
        return sorted(waiting, key=lambda entry: order.get(entry.trial_id, len(order)))

    def missing_references(self) -> list[Method]:
        """References that have not begun."""
        return [method for method in self.references if method not in self.ledger.entries]

    def restart_failed_references(self) -> None:
        """Begin failed references afresh: unlike a searched trial they have no substitute."""
        for entry in self.entries("reference"):
            if entry.result is not None and entry.result.status is Status.FAILED:
                self.ledger.start(dataclasses.replace(entry, result=None))

    def num_missing(self) -> int:
        """Trials that still have to run, begun or not."""
        unstarted = self.settings.search.num_trials - len(self.entries("search"))
        return len(self.unfinished()) + len(self.missing_references()) + max(0, unstarted)

    def begin(self, trial_id: str) -> None:
        """A process has taken the trial up (again)."""
        if trial_id not in self.running:
            self.running[trial_id] = Running(self.ledger.entries[trial_id])

    def finish(self, result: TrialResult) -> TrialResult:
        """Judge, record and return a trial's result: an objective that is missing or not finite is a failure."""
        entry = self.ledger.entries[result.trial_id]
        result = dataclasses.replace(result, params=entry.params)
        if result.status is Status.COMPLETE:
            problem = self._objective_problem(result)
            if problem:
                result = dataclasses.replace(result, status=Status.FAILED, error=problem)
        self.ledger.finish(result)
        running = self.running.pop(result.trial_id, None)
        if running is not None and result.status is not Status.FAILED:
            self._seconds[entry.role].append(time.monotonic() - running.started)
        return result

    @property
    def desired_floor(self) -> float | None:
        """Least desired accuracy of a feasible trial; None without a bound, or while or because tuned has no result."""
        drop = self.settings.search.max_desired_drop
        tuned = self.ledger.entries.get("tuned")
        if drop is None or tuned is None or tuned.result is None or tuned.result.status is not Status.COMPLETE:
            return None
        return tuned.result.metrics[Metric.DESIRED_ACCURACY] - drop

    @property
    def floor_is_pending(self) -> bool:
        """Whether the tuned reference, which feasibility is relative to, is still to come."""
        if self.settings.search.max_desired_drop is None:
            return False
        tuned = self.ledger.entries.get("tuned")
        return tuned is None or tuned.result is None

    def violation(self, result: TrialResult) -> float | None:
        """How far a trial misses the bound on desired accuracy (at most 0: feasible); None without a bound.

        A trial that was stopped, or stopped itself because of the desired task, misses it by as much as can be.
        """
        if result.status in (Status.STOPPED, Status.INFEASIBLE):
            return 1.0
        floor = self.desired_floor
        return None if floor is None else floor - result.metrics.get(Metric.DESIRED_ACCURACY, math.nan)

    def judged(self, result: TrialResult) -> TrialResult:
        """The result with status `infeasible` where it misses the bound; references keep theirs."""
        violation = self.violation(result)
        infeasible = result.status is Status.COMPLETE and violation is not None and not violation <= 0
        if not infeasible or self.ledger.entries[result.trial_id].role == "reference":
            return result
        return dataclasses.replace(result, status=Status.INFEASIBLE)

    def results(self) -> list[TrialResult]:
        """Judged results, references first."""
        return [self.judged(result) for _, result in self._finished()]

    def points(self) -> list[Point]:
        """Points for the frontier; failed and stopped trials are none. Feasibility is unknown while tuned runs."""
        if self.floor_is_pending:
            return [
                dataclasses.replace(point, feasible=False) if not point.is_reference else point
                for point in self._points()
            ]
        return list(self._points())

    def snapshot(self) -> Snapshot:
        """What a view shows now."""
        search = [result for entry, result in self._finished() if entry.role == "search"]
        statuses = [self.judged(result).status for result in search]
        return Snapshot(
            name=self.settings.name,
            num_trials=self.settings.search.num_trials,
            num_references=len(self.references),
            counts={status: statuses.count(status) for status in Status},
            references=tuple(result for entry, result in self._finished() if entry.role == "reference"),
            running=tuple(self.running.values()),
            front=tuple(pareto_front(self.points())),
            elapsed_seconds=time.monotonic() - self._started,
            seconds_left=self._seconds_left(),
        )

    def _finished(self) -> Iterator[tuple[Entry, TrialResult]]:
        for role in ("reference", "search"):
            for entry in self.entries(role):
                if entry.result is not None:
                    yield entry, entry.result

    def _points(self) -> Iterator[Point]:
        for entry, result in self._finished():
            if result.status is Status.COMPLETE:
                yield point_from_result(self.judged(result), is_reference=entry.role == "reference")

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

    def _seconds_left(self) -> float | None:
        search, reference = self._seconds["search"], self._seconds["reference"]
        means = {"search": _mean(search) or _mean(reference), "reference": _mean(reference) or _mean(search)}
        if means["search"] is None or means["reference"] is None:
            return None
        num_unstarted = max(0, self.settings.search.num_trials - len(self.entries("search")))
        left = num_unstarted * means["search"] + len(self.missing_references()) * means["reference"]
        for entry in self.unfinished():
            mean = means[entry.role]
            assert mean is not None
            running = self.running.get(entry.trial_id)
            spent = time.monotonic() - running.started if running else 0.0
            left += max(mean - spent, 0.1 * mean)
        return left / max(1, self.concurrency)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
