"""State of a sweep on the driver: which trials have begun, run or ended, and which is next. Without files or Ray."""

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

    A *point* is one or more trials that differ in their training seed. Updates are incremental, so the cost per trial
    does not grow with the length of the sweep.

    Args:
        settings: the sweep's settings.
        record: contents of the ledger; None for a sweep that has not begun.
        concurrency: number of trials that run at once.
    """

    def __init__(self, settings: SweepSettings, record: Record | None = None, *, concurrency: int = 1) -> None:
        record = record or Record()
        self.settings = settings
        self.concurrency = concurrency
        self.trials = dict(record.entries)
        """Every trial by id, in the order of their start."""
        self.rungs = {step: dict(measured) for step, measured in record.rungs.items()}
        """(desired, harmful) accuracy on validation, by outer step and trial."""
        self.running: dict[str, Running] = {}
        self.stopping: dict[str, str] = {}
        """Reasons for pruning trials that Tune has been asked to stop, by trial id."""
        self.deaths: dict[str, Deaths] = {}
        """Deaths of trials' processes under this driver, by trial id."""
        self.clock = SweepClock(settings, earlier_seconds=record.elapsed)
        self.references = ordered_references(settings)
        """Reference methods and variants in the order in which they run."""
        self._first_of: dict[str, Entry] = {}
        self._count_all()

    @property
    def num_seeds(self) -> int:
        """Number of training seeds per point."""
        return self.settings.search.num_seeds

    @property
    def num_points(self) -> int:
        """Number of searched points that have begun."""
        return len(self._groups["search"])

    def entries(self, role: Role) -> list[Entry]:
        """Entries of a role, point by point in the order of their start."""
        return [entry for group in self._groups[role].values() for entry in group.values()]

    def point(self, trial_id: str) -> list[Entry]:
        """Trials of a searched point, one per training seed."""
        return list(self._groups["search"][trial_id].values())

    def unfinished(self) -> list[Entry]:
        """Entries that have begun and still have to end, references first, in their order."""
        order: dict[str, int] = {method: rank for rank, method in enumerate(self.references)}
        return sorted(self._still_to_end(), key=lambda entry: order.get(entry.point, len(order)))

    def infrastructure(self) -> list[Entry]:
        """Searched trials that were given up after external kills under `resources.max_kills` drivers.

        They have no result, are not repeated, and are not reported to Optuna. References and final attacks are never
        given up like this, because no other trial can replace them.
        """
        most = self.settings.resources.max_kills
        return [entry for entry in self._unfinished.values() if entry.role == "search" and entry.num_killed >= most]

    def planned(self) -> Entry | None:
        """Next trial that does not need the sampler: a reference, another seed of a point, or a final attack."""
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
        """Whether another point is to be searched."""
        return self.num_points < self.settings.search.num_trials and self.spent() is None

    def spent(self) -> str | None:
        """Message that names the budget of hours that is spent, after which no further point may begin; else None."""
        return self.clock.spent(self.running.values())

    def failed_references(self) -> list[Entry]:
        """References and final attacks that failed; unlike searched trials, no other trial can replace them."""
        entries = (*self.entries("reference"), *self.entries("final"))
        return [entry for entry in entries if entry.result is not None and entry.result.status is Status.FAILED]

    def num_missing(self) -> int:
        """Number of trials that still have to run, whether they have begun or not."""
        return len(self._still_to_end()) + sum(self._num_unstarted().values())

    def start(self, entry: Entry) -> Entry:
        """Add a trial before it runs; replaces a trial with the same id, including its result."""
        again = entry.trial_id in self.trials
        self.trials[entry.trial_id] = entry
        if again:
            self._count_all()
        else:
            self._count_begun(entry)
        return entry

    def begin(self, trial_id: str) -> None:
        """Mark a trial as running in a process; does nothing if it is already."""
        if trial_id not in self.running:
            self.running[trial_id] = Running(self.trials[trial_id])

    def died(self, trial_id: str, reason: str | None, *, dump: int | None = None) -> None:
        """Record the death of a trial's process, whether the trial had begun or not.

        Args:
            trial_id: id of the trial.
            reason: reason for the death; None if unknown.
            dump: modification time of the stack trace (`hang.txt`) in the trial's folder; None without one.
        """
        deaths = self.deaths.setdefault(trial_id, Deaths())
        deaths.count, deaths.reason = deaths.count + 1, reason or deaths.reason
        deaths.hung, deaths.dump = dump is not None and dump != deaths.dump, dump

    def give_up(self, trial_id: str, reason: str) -> None:
        """Record that a trial's process was ended from outside, and that this driver does not run the trial again."""
        entry = self.trials[trial_id]
        entry.num_killed, entry.killed = entry.num_killed + 1, reason

    def checked(self, result: TrialResult) -> TrialResult:
        """Return a result with its params; failed if an objective is missing or not finite, or if data or encoder are
        not those of earlier trials."""
        result = dataclasses.replace(result, params=self.trials[result.trial_id].params)
        problem = self.judgement.objective_problem(result) if result.status is Status.COMPLETE else None
        entry = dataclasses.replace(self.trials[result.trial_id], result=result)
        other = other_inputs(self._inputs, shared_inputs(entry)) if result.status is Status.COMPLETE else None
        if other is not None:
            problem = f"measured on other inputs than the trials before it: {other}; restore what was there"
        return result if problem is None else dataclasses.replace(result, status=Status.FAILED, error=problem)

    def running_seconds(self, trial_id: str) -> float:
        """Time for which a trial has occupied a process; 0 if it is not running."""
        running = self.running.get(trial_id)
        return 0.0 if running is None else time.monotonic() - running.started

    def finish(self, result: TrialResult, *, seconds: float = 0.0) -> None:
        """Store a trial's result, as returned by `checked`, and the time for which the trial occupied a process."""
        entry = self.trials[result.trial_id]
        entry.result, entry.seconds = result, seconds
        self.running.pop(result.trial_id, None)
        self.clock.count_finished()
        self._count_ended(entry)

    def at_rung(self, trial_id: str, step: int, desired: float, harmful: float) -> str | None:
        """Store a trial's accuracies at a rung; returns the reason if the trial is to be pruned, else None."""
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
        """Result of a trial, with feasibility if points have one seed; with several seeds it is decided per point."""
        entry = self.trials[result.trial_id]
        return result if self.num_seeds > 1 else self.judgement.judged(result, entry.role)

    def results(self) -> list[TrialResult]:
        """Results of ended trials: references, then searched trials, then final attacks."""
        return [
            self.judged_trial(entry.result)
            for role in ROLES
            for entry in self.entries(role)
            if entry.result is not None
        ]

    def snapshot(self) -> Snapshot:
        """Current data for a view."""
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
        if lost:  # the point cannot complete any more: its other seeds need not begin
            self._incomplete.pop(entry.point, None)
            self._num_skipped += self.num_seeds - len(group)
        self.judgement.add(entry.role, entry.point, finished)

    def _reference(self, name: str) -> Entry:
        """First trial of a reference; cached, because it requires a validation of the settings."""
        if name not in self._first_of:
            method = reference_settings(self.settings, name).train.method
            self._first_of[name] = Entry(name, "reference", method, params=self.settings.variants.get(name, {}))
        return self._first_of[name]

    def _next_seed(self, role: Role, first: Entry) -> Entry | None:
        """Trial of the first seed of a point that has not begun; None if all have."""
        begun = self._groups[role].get(first.point, {})
        for index in range(self.num_seeds):
            if index not in begun:
                trial_id = first.point if index == 0 else seed_id(first.point, index)
                return dataclasses.replace(first, trial_id=trial_id, role=role, seed_index=index, result=None)
        return None

    def _finalists(self) -> list[Entry]:
        """First trials of the final attacks, on the front's best points and on references; empty during the search."""
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
        """Whether trials that precede the final attacks have not ended."""
        unfinished = any(entry.role != "final" for entry in self._still_to_end())
        references = any(self.judgement.ended(method, "reference") is None for method in self.references)
        return unfinished or references or bool(self._incomplete)

    def _still_to_end(self) -> list[Entry]:
        """Trials that have begun and not ended, without those that were given up."""
        left_out = {entry.trial_id for entry in self.infrastructure()}
        return [entry for entry in self._unfinished.values() if entry.trial_id not in left_out]

    def _is_complete(self, method: str) -> bool:
        ended = self.judgement.ended(method, "reference")
        return ended is not None and ended.status is Status.COMPLETE

    def _num_unstarted(self) -> dict[Role, int]:
        """Number of trials that have not begun, by role, as far as it is known."""
        begun = self._num_begun
        references = len(self.references) * self.num_seeds - begun["reference"]
        points = self.num_points if not self.wants_point() else self.settings.search.num_trials
        finals = len(self._finalists()) * self.num_seeds - begun["final"]
        search = points * self.num_seeds - begun["search"] - self._num_skipped
        return {"reference": max(0, references), "search": max(0, search), "final": max(0, finals)}


def seed_id(point: str, index: int) -> str:
    """Id of the trial for a training seed with index 1 or higher."""
    if point.endswith(FINAL):
        return f"{point.removesuffix(FINAL)}-s{index}{FINAL}"
    return f"{point}-s{index}"
