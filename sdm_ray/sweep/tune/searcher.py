"""Ray Tune searcher of a sweep: first unfinished trials, then the references, then points suggested by Optuna.

It does not derive from `ray.tune.search.optuna.OptunaSearch`, because it would override all of it: that class leaves
trials with NaN in state RUNNING, reports stopped trials as complete, enqueues warm-start points again on every start,
requires the objectives in every report, and keeps its state in a pickle.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from sdm_ray.core.errors import RunError, UsageError, machine_fault
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep.cluster.failures import Failure
from sdm_ray.sweep.cluster.watchdog import HANG, hang_dump
from sdm_ray.sweep.cluster.worker import finished_result
from sdm_ray.sweep.records.folder import RESUME_HINT
from sdm_ray.sweep.search.models import first_points
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.state.snapshot import Deaths, times
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.tune.deaths import is_from_outside
from sdm_ray.sweep.tune.jobs import JobMaker

OnResult = Callable[[TrialResult], None]
Link = Callable[[str], Mapping[str, str]]

FINISHED: str = Searcher.FINISHED
TRIAL_NOTE = "trial"
"""Key of the Optuna user attribute that holds a trial's id in the sweep."""
STOPPED_BY_MACHINE = "machine"
"""Stop reason for a fault of the machine, such as a full or broken disk or a lost Ray; treated as an interruption."""
MAX_EARLY_DEATHS = 3
"""How often a trial is suggested again because its process died before the trial began."""


def times_drivers(count: int) -> str:
    """Format a number of drivers as a phrase."""
    return "this driver" if count == 1 else f"{count} drivers"


def no_link(trial_id: str) -> dict[str, str]:
    """Return no attributes: the `link` for sweeps that are not tracked."""
    return {}


class DriverOnly:
    """Base class that stops Tune from pickling or copying driver objects; their state is on disk already."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> DriverOnly:
        return self


class SweepSearcher(DriverOnly, Searcher):
    """Suggests trials and records their ends. A trial is in the ledger before it runs, and in Optuna when it has ended.

    Args:
        recorder: the sweep's state and ledger.
        study: Optuna study that suggests points and receives their results.
        jobs: builds the jobs for worker processes.
        on_result: called with the result of each trial that ends, after it is in the ledger.
        unreported: points that ended under an earlier driver and are not yet reported to Optuna.
        stop: asks the sweep to end, with the reason.
        announce: shows a message to the user.
        link: returns Optuna user attributes that point to a trial's run in the tracker.
        is_lost: whether Ray itself has died, with all of its processes.
    """

    def __init__(
        self,
        recorder: Recorder,
        study: SearchStudy,
        jobs: JobMaker,
        *,
        on_result: OnResult,
        unreported: list[TrialResult],
        stop: Callable[[str], None],
        announce: Callable[[str], None],
        link: Link = no_link,
        is_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self._recorder = recorder
        self._state = recorder.state
        self._study = study
        self._jobs = jobs
        self._on_result = on_result
        self._unreported = unreported
        self._stop = stop
        self._announce = announce
        self._link = link
        self.is_lost = is_lost
        self._adopted = self._state.unfinished()
        self._points = first_points(self._state.settings)
        self._by_tune_id: dict[str, str] = {}
        self._num_deaths: Counter[str] = Counter()
        self._halted = False
        self.error: Exception | None = None
        """Error that ended the sweep."""
        self.left_unfinished: list[str] = []
        """Trials that were ended by a fault of the machine; they are rerun when the sweep is resumed."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Config of the next trial; None if no trial can start now, `FINISHED` if all have ended."""
        if self.error is not None or self._halted:
            return FINISHED
        if len(self._by_tune_id) >= self._state.concurrency:
            return None
        try:
            entry = self._next_entry()
        except Exception as error:
            return self.give_up(error)
        if entry is None:
            return None if self._by_tune_id else FINISHED
        self._by_tune_id[trial_id] = entry.trial_id
        return self._jobs.config(entry)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: `SweepCallback` handles progress."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial. One with neither a result nor an error was interrupted and stays unfinished."""
        ended = self._by_tune_id.pop(trial_id, None)
        if ended is None or self.error is not None:
            return
        try:
            self._take_end(ended, result, error)
        except Exception as problem:
            self.give_up(problem)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: the ledger and Optuna's storage hold the whole state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the checkpoint is empty."""

    def give_up(self, error: Exception) -> str:
        """End the sweep because the ledger or the storage failed; returns `FINISHED`.

        The error is kept in `error`, because Tune would wrap it beyond recognition. A fault of the machine, such as a
        full disk, counts as an interruption instead: all ended trials are on disk.
        """
        fault = None if isinstance(error, UsageError) else machine_fault(error)
        if fault is not None:
            if self._halted:
                return FINISHED
            said = error if isinstance(error, RunError) else fault
            self._announce(f"{said}: the sweep ends; what has finished is kept, {RESUME_HINT}")
            self._halt()
            return FINISHED
        self.error = self.error or error
        self._stop("failed")
        return FINISHED

    def _next_entry(self) -> Entry | None:
        if self._adopted:
            return self._adopted.pop(0)
        entry = self._state.planned()
        if entry is None and self._state.wants_point():
            index = self._state.num_points
            number, params = self._study.ask(self._points[index] if index < len(self._points) else None)
            method = params.get("train.method", self._state.settings.trial.train.method)
            entry = Entry(f"t{index:04d}", "search", method, number, params)
            self._study.note(number, {TRIAL_NOTE: entry.trial_id})
        return None if entry is None else self._recorder.start(entry)

    def _take_end(self, trial_id: str, report: dict[str, Any] | None, error: bool) -> None:
        """Record how a trial ended, or queue it again.

        If a reused process dies before it starts the trial, Tune gives the trial up at once; it is queued again. If a
        process dies after the result is written but before it is reported, the written result counts. After a fault of
        the machine the trial stays unfinished and is not reported to Optuna, because its point is not to blame.
        """
        if report and report.get("result"):
            self._state.stopping.pop(trial_id, None)  # it ended before it was stopped
            ended = TrialResult.from_dict(json.loads(report["result"]), self._output_dir(trial_id))
            failure = report.get("failure")
            if failure == Failure.MACHINE:
                self._leave_unfinished(trial_id, str(ended.error))
                self._halt()
            elif failure is None or not self._runs_again_with_more_memory(ended.trial_id, Failure(failure)):
                self._finish(ended)
        elif trial_id in self._state.stopping:
            self._finish(self._without_result(trial_id, Status.STOPPED, self._state.stopping.pop(trial_id)))
        elif error and (written := self._written_result(trial_id)) is not None:
            self._finish(written)
        elif error and self.is_lost():
            self._state.running.pop(trial_id, None)
            self._halt()
        elif error and trial_id not in self._state.running and self._num_deaths[trial_id] < MAX_EARLY_DEATHS:
            self._num_deaths[trial_id] += 1
            self._adopted.append(self._state.trials[trial_id])
        elif error and not self._is_hung(trial_id) and is_from_outside(self._deaths(trial_id).reason):
            self._give_trial_up(trial_id)
        elif error:
            self._finish(self._lost(trial_id))

    def _leave_unfinished(self, trial_id: str, fault: str) -> None:
        """Leave a trial unfinished, to be continued when the sweep is resumed."""
        self._state.running.pop(trial_id, None)
        self.left_unfinished.append(trial_id)
        self._announce(f"trial {trial_id}: {fault}; it stays unfinished, and --resume goes on with it")

    def _give_trial_up(self, trial_id: str) -> None:
        """Leave a trial that was killed from outside unfinished, or exclude it after `resources.max_kills` drivers."""
        deaths = self._deaths(trial_id)
        fault = f"{deaths}: {deaths.reason}"
        self._recorder.give_up(trial_id, fault)
        if self._state.trials[trial_id] not in self._state.infrastructure():
            self._leave_unfinished(trial_id, fault)
            return
        self._state.running.pop(trial_id, None)
        self._announce(
            f"trial {trial_id}: {fault}; that was so under {times_drivers(self._state.trials[trial_id].num_killed)} "
            "(resources.max_kills), so it is left out; --resume --retry-infrastructure repeats it"
        )

    def _halt(self) -> None:
        """Start no more trials, because the fault of the machine would end them too."""
        self._halted = True
        self._stop(STOPPED_BY_MACHINE)

    def _deaths(self, trial_id: str) -> Deaths:
        return self._state.deaths.get(trial_id, Deaths())

    def _is_hung(self, trial_id: str) -> bool:
        deaths = self._deaths(trial_id)
        return deaths.hung if deaths.count else hang_dump(self._output_dir(trial_id)) is not None

    def _written_result(self, trial_id: str) -> TrialResult | None:
        """Result in the folder of a trial that did not report it; None if there is none or it cannot be read."""
        try:
            return finished_result(self._jobs.job(self._state.trials[trial_id]))
        except (UsageError, RunError):
            return None

    def _runs_again_with_more_memory(self, trial_id: str, failure: Failure) -> bool:
        """Queue a trial that ran out of memory again and run one trial fewer at once; False if only one runs."""
        if self._state.concurrency == 1:
            return False
        self._state.concurrency -= 1
        self._state.running.pop(trial_id, None)
        self._adopted.append(self._state.trials[trial_id])
        self._announce(
            f"trial {trial_id}: {failure}; it goes on from its checkpoint, "
            f"and from now on {self._state.concurrency} run at once"
        )
        return True

    def _lost(self, trial_id: str) -> TrialResult:
        """Failed result of a trial whose process died too often."""
        deaths = self._deaths(trial_id)
        error = f"{deaths}: {deaths.reason}" if deaths.reason else str(deaths)
        if self._is_hung(trial_id):
            silent = self._state.settings.resources.max_silent_seconds
            often = f", {times(deaths.count)}" if deaths.count > 1 else ""
            error = f"it made no progress for {silent:g} s{often} ({HANG} in its folder says where)"
        error = f"{error}; resources.max_failures allows no further start"
        return self._without_result(trial_id, Status.FAILED, error)

    def _without_result(self, trial_id: str, status: Status, error: str) -> TrialResult:
        """Result for a trial that reported none."""
        entry = self._state.trials[trial_id]
        return TrialResult(
            trial_id=trial_id,
            config_hash="",
            method=entry.method,
            seed=self._state.settings.trial.seed + entry.seed_index,
            status=status,
            metrics={},
            output_dir=self._output_dir(trial_id),
            error=error,
        )

    def _output_dir(self, trial_id: str) -> Path:
        return self._recorder.ledger.output_dir(trial_id)

    def _finish(self, result: TrialResult) -> None:
        result = self._recorder.finish(result)
        entry = self._state.trials[result.trial_id]
        if entry.role == "search" and (point := self._state.judgement.ended(entry.point)) is not None:
            self._unreported.append(point)
        report_to_optuna(self._state, self._study, self._unreported, self._link)
        self._on_result(result)


def report_to_optuna(
    state: SweepState, study: SearchStudy, unreported: list[TrialResult], link: Link = no_link
) -> None:
    """Report ended points to Optuna and remove them from the list; only failed ones while feasibility is unknown.

    Args:
        state: the sweep's state.
        study: study that receives the points.
        unreported: results of searched points, combined over their seeds; updated in place.
        link: see `SweepSearcher`.
    """
    judgement = state.judgement
    waiting = [result for result in unreported if judgement.floor_is_pending and result.status is not Status.FAILED]
    for result in itertools.filterfalse(waiting.__contains__, unreported):
        number = state.point(result.trial_id)[0].number
        assert number is not None
        study.note(number, {TRIAL_NOTE: result.trial_id, **link(result.trial_id)})
        values = [result.metrics.get(objective.metric) for objective in state.settings.objectives]
        violations = judgement.violations(result)
        if result.status in (Status.INFEASIBLE, Status.STOPPED):
            study.stop(number, violations=violations)
        elif result.status is Status.FAILED or None in values:
            study.fail(number)
        else:
            study.tell(number, [value for value in values if value is not None], violations=violations)
    unreported[:] = waiting
