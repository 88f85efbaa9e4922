"""What the driver knows of a sweep: which trials began, run and ended, and which come next. No file, no Ray."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

from sdm_ray.config import SweepSettings
from sdm_ray.core.result import FINAL, Status, TrialResult, other_inputs
from sdm_ray.sweep.search.models import ordered_references, reference_settings
from sdm_ray.sweep.state.clock import SweepClock
from sdm_ray.sweep.state.inputs import shared_inputs
from sdm_ray.sweep.state.judgement import Judgement
from sdm_ray.sweep.state.ledger import Entry, Record, Role
from sdm_ray.sweep.state.pruning import pruning_reason
from sdm_ray.sweep.state.snapshot import Deaths, Running, Snapshot

ROLES: tuple[Role, ...] = ("reference", "search", "final")


class SweepState:
    """Trials of a sweep, with its `judgement` and its `clock`.

    A *point* is one or more trials that differ in their training seed. Each change is worked out from the trial that
    it concerns alone, so that a long sweep costs no more a trial than a short one.

    Args:
        settings: the sweep.
        record: what is known of it already; None is a sweep that has not begun.
        concurrency: trials at once.
    """

    def __init__(self, settings: SweepSettings, record: Record | None = None, *, concurrency: int = 1) -> None:
        record = record or Record()
        self.settings = settings
        self.concurrency = concurrency
        self.trials = dict(record.entries)
        """Every trial by its id, in the order of their start."""
        self.rungs = {step: dict(measured) for step, measured in record.rungs.items()}
        """(desired, harmful) accuracy on validation, by outer step and trial."""
        self.running: dict[str, Running] = {}
        self.stopping: dict[str, str] = {}
        """Why running trials are being stopped."""
        self.deaths: dict[str, Deaths] = {}
        """Of the processes of trials, under this driver."""
        self.clock = SweepClock(settings, earlier_seconds=record.elapsed)
        self.references = ordered_references(settings)
        """Reference methods and variants in the order in which they run."""
        self._first_of: dict[str, Entry] = {}
        self._count_all()

    @property
    def num_seeds(self) -> int:
        """Training seeds of a point."""
        return self.settings.search.num_seeds

    @property
    def num_points(self) -> int:
        """Searched points that have begun."""
        return len(self._groups["search"])

    def entries(self, role: Role) -> list[Entry]:
        """Entries of a role, point by point in the order of their start."""
        return [entry for group in self._groups[role].values() for entry in group.values()]

    def point(self, trial_id: str) -> list[Entry]:
        """The trials of a searched point, by training seed."""
        return list(self._groups["search"][trial_id].values())

    def unfinished(self) -> list[Entry]:
        """Entries that began and have not ended: first the references in their order."""
        order: dict[str, int] = {method: rank for rank, method in enumerate(self.references)}
        return sorted(self._still_to_end(), key=lambda entry: order.get(entry.point, len(order)))

    def infrastructure(self) -> list[Entry]:
        """Searched trials whose process was ended from outside as often as `resources.max_kills` allows.

        They have no end, are not repeated, and say nothing of their points; Optuna hears nothing of them. References
        and final attacks are never among them, for they have no substitute.
        """
        most = self.settings.resources.max_kills
        return [entry for entry in self._unfinished.values() if entry.role == "search" and entry.num_killed >= most]

    def planned(self) -> Entry | None:
        """The next trial that follows without the sampler: a reference, another seed of a point, or a final attack."""
        for name in self.references:
            if (entry := self._next_seed("reference", self._reference(name))) is not None:
                return entry
        for point in self._incomplete:
            first = self._groups["search"][point][0]
            if (entry := self._next_seed("search", first)) is not None:
                return entry
        for first in self._finalists():
            if (entry := self._next_seed("final", first)) is not None:
                return entry
        return None

    def wants_point(self) -> bool:
        """Whether another point shall be searched."""
        return self.num_points < self.settings.search.num_trials and self.spent() is None

    def spent(self) -> str | None:
        """Why no further point may begin: a budget of hours is spent. None while there is some left."""
        return self.clock.spent(self.running.values())

    def failed_references(self) -> list[Entry]:
        """References and final attacks that failed: unlike a searched trial they have no substitute."""
        entries = (*self.entries("reference"), *self.entries("final"))
        return [entry for entry in entries if entry.result is not None and entry.result.status is Status.FAILED]

    def num_missing(self) -> int:
        """Trials that still have to run, begun or not."""
        return len(self._still_to_end()) + sum(self._num_unstarted().values())

    def start(self, entry: Entry) -> Entry:
        """Add a trial before it runs; one of the same id, with its result, is replaced."""
        again = entry.trial_id in self.trials
        self.trials[entry.trial_id] = entry
        if again:
            self._count_all()
        else:
            self._count_begun(entry)
        return entry

    def begin(self, trial_id: str) -> None:
        """A process has taken the trial up (again)."""
        if trial_id not in self.running:
            self.running[trial_id] = Running(self.trials[trial_id])

    def died(self, trial_id: str, reason: str | None, *, dump: int | None = None) -> None:
        """The process of a trial has died, begun or not.

        Args:
            trial_id: the trial.
            reason: None where nobody knows why.
            dump: when the last account of a hang in its folder was written, where there is one.
        """
        deaths = self.deaths.setdefault(trial_id, Deaths())
        deaths.count, deaths.reason = deaths.count + 1, reason or deaths.reason
        deaths.hung, deaths.dump = dump is not None and dump != deaths.dump, dump

    def give_up(self, trial_id: str, reason: str) -> None:
        """A trial's process was ended from outside, and this driver does not try it again."""
        entry = self.trials[trial_id]
        entry.num_killed, entry.killed = entry.num_killed + 1, reason

    def checked(self, result: TrialResult) -> TrialResult:
        """A trial's result as it counts: with its params, and failed where an objective is missing or not finite, or
        where data or encoder are not those of the trials before it."""
        result = dataclasses.replace(result, params=self.trials[result.trial_id].params)
        problem = self.judgement.objective_problem(result) if result.status is Status.COMPLETE else None
        entry = dataclasses.replace(self.trials[result.trial_id], result=result)
        other = other_inputs(self._inputs, shared_inputs(entry)) if result.status is Status.COMPLETE else None
        if other is not None:
            problem = f"measured on other inputs than the trials before it: {other}; restore what was there"
        return result if problem is None else dataclasses.replace(result, status=Status.FAILED, error=problem)

    def running_seconds(self, trial_id: str) -> float:
        """How long a trial has occupied a process; 0 where it does not."""
        running = self.running.get(trial_id)
        return 0.0 if running is None else time.monotonic() - running.started

    def finish(self, result: TrialResult, *, seconds: float = 0.0) -> None:
        """Take a trial's result, as `checked` gives it, and how long the trial occupied a process."""
        entry = self.trials[result.trial_id]
        entry.result, entry.seconds = result, seconds
        self.running.pop(result.trial_id, None)
        self.clock.count_finished()
        self._count_ended(entry)

    def at_rung(self, trial_id: str, step: int, desired: float, harmful: float) -> str | None:
        """Take what a trial measured at a rung; returns the reason where the trial shall be stopped for it."""
        measured = self.rungs.setdefault(step, {})
        measured.setdefault(trial_id, (desired, harmful))
        if self.trials[trial_id].role != "search":
            return None
        searched = [
            values for other, values in measured.items() if other != trial_id and self.trials[other].role == "search"
        ]
        reason = pruning_reason(self.settings.search, (desired, harmful), measured.get("tuned"), searched)
        if reason is not None:
            self.stopping[trial_id] = f"stopped at outer step {step}: {reason}"
        return reason

    def judged_trial(self, result: TrialResult) -> TrialResult:
        """The result of one trial, judged where a point has one seed; of several seeds only the whole point is."""
        entry = self.trials[result.trial_id]
        return result if self.num_seeds > 1 else self.judgement.judged(result, entry.role)

    def results(self) -> list[TrialResult]:
        """Results of trials that ended: references, then searched ones, then final attacks."""
        return [
            self.judged_trial(entry.result)
            for role in ROLES
            for entry in self.entries(role)
            if entry.result is not None
        ]

    def snapshot(self) -> Snapshot:
        """What a view shows now."""
        references = (self.judgement.ended(method, "reference") for method in self.references)
        left = self.clock.seconds_left(self._num_unstarted(), self._still_to_end(), self.running, self.concurrency)
        return Snapshot(
            name=self.settings.name,
            num_trials=self.settings.search.num_trials,
            num_references=len(self.references) * self.num_seeds,
            num_references_done=sum(entry.result is not None for entry in self.entries("reference")),
            counts=self.judgement.counts(),
            references=tuple(result for result in references if result is not None),
            running=tuple(self.running.values()),
            front=tuple(self.judgement.front()),
            elapsed_seconds=self.clock.elapsed_seconds,
            seconds_left=left,
            trials_per_hour=self.clock.trials_per_hour,
        )

    def _count_all(self) -> None:
        self.judgement = Judgement(self.settings)
        self.clock.forget_trials()
        self._groups: dict[Role, dict[str, dict[int, Entry]]] = {role: {} for role in ROLES}
        self._num_begun: Counter[Role] = Counter()
        self._unfinished: dict[str, Entry] = {}
        self._incomplete: dict[str, None] = {}
        self._num_skipped = 0
        self._chosen: list[Entry] | None = None
        self._inputs: dict[str, str] = {}
        for entry in self.trials.values():
            self._count_begun(entry)
        for entry in self.trials.values():
            if entry.result is not None:
                self._count_ended(entry)

    def _count_begun(self, entry: Entry) -> None:
        group = self._groups[entry.role].setdefault(entry.point, {})
        self._num_begun[entry.role] += entry.seed_index not in group
        group[entry.seed_index] = entry
        self._unfinished[entry.trial_id] = entry
        if entry.role == "final":
            self.judgement.expect_final(entry.point)
        elif entry.role == "search":
            if len(group) < self.num_seeds:
                self._incomplete[entry.point] = None
            else:
                self._incomplete.pop(entry.point, None)

    def _count_ended(self, entry: Entry) -> None:
        self._unfinished.pop(entry.trial_id, None)
        self._inputs = shared_inputs(entry) | self._inputs
        self.clock.add(entry)
        group = self._groups[entry.role][entry.point]
        results = [group[index].result for index in sorted(group)]
        finished = [result for result in results if result is not None]
        lost = entry.role == "search" and any(result.status is not Status.COMPLETE for result in finished)
        settled = self.judgement.ended(entry.point, entry.role) is not None
        if settled or (len(finished) < self.num_seeds and not lost):
            return
        if lost:  # a point counts only whole: its other seeds need not begin
            self._incomplete.pop(entry.point, None)
            self._num_skipped += self.num_seeds - len(group)
        self.judgement.add(entry.role, entry.point, finished)

    def _reference(self, name: str) -> Entry:
        """The first trial of a reference, made once: its settings are validated for it."""
        if name not in self._first_of:
            method = reference_settings(self.settings, name).train.method
            self._first_of[name] = Entry(name, "reference", method, params=self.settings.variants.get(name, {}))
        return self._first_of[name]

    def _next_seed(self, role: Role, first: Entry) -> Entry | None:
        """The first seed of a point that has not begun."""
        begun = self._groups[role].get(first.point, {})
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
            best = self.judgement.finalists(final.num_points)
            firsts = [self._groups["search"][point.trial_id][0] for point in best]
            firsts += [self._reference(name) for name in self.references if self._is_complete(name)]
            self._chosen = [
                Entry(f"{first.point}{FINAL}", "final", first.method, params=first.params) for first in firsts
            ]
        return self._chosen

    def _is_searching(self) -> bool:
        """Whether a trial that comes before the final stage has not ended."""
        unfinished = any(entry.role != "final" for entry in self._still_to_end())
        references = any(self.judgement.ended(method, "reference") is None for method in self.references)
        return unfinished or references or bool(self._incomplete)

    def _still_to_end(self) -> list[Entry]:
        """Trials that began and shall end."""
        left_out = {entry.trial_id for entry in self.infrastructure()}
        return [entry for entry in self._unfinished.values() if entry.trial_id not in left_out]

    def _is_complete(self, method: str) -> bool:
        ended = self.judgement.ended(method, "reference")
        return ended is not None and ended.status is Status.COMPLETE

    def _num_unstarted(self) -> dict[Role, int]:
        """Trials that have not begun, as far as they are known, by role."""
        begun = self._num_begun
        references = len(self.references) * self.num_seeds - begun["reference"]
        points = self.num_points if not self.wants_point() else self.settings.search.num_trials
        finals = len(self._finalists()) * self.num_seeds - begun["final"]
        search = points * self.num_seeds - begun["search"] - self._num_skipped
        return {"reference": max(0, references), "search": max(0, search), "final": max(0, finals)}


def seed_id(point: str, index: int) -> str:
    """Id of a further training seed's trial."""
    if point.endswith(FINAL):
        return f"{point.removesuffix(FINAL)}-s{index}{FINAL}"
    return f"{point}-s{index}"
