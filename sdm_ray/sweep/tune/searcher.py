"""What Ray Tune asks for trials: unfinished ones first, then the references, then what Optuna suggests.

Not a subclass of `ray.tune.search.optuna.OptunaSearch`: of that class nothing would remain. It leaves trials with NaN
RUNNING, tells stopped trials as completed ones, queues warm-start points again on every start, demands the objectives
in every report, and keeps its state in a pickle.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from sdm_ray.config import Origin, SweepSettings, override
from sdm_ray.config.trial import REPEAT_SEED
from sdm_ray.core.result import FINAL, Status, TrialResult
from sdm_ray.sweep.cluster.mirror import trials_uri
from sdm_ray.sweep.cluster.worker import HANG, OUT_OF_GPU_MEMORY, OUT_OF_MEMORY, Job
from sdm_ray.sweep.search.models import first_points, ordered_references, reference_settings
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.tune.trainable import CACHES, JOB, TRIAL

OnResult = Callable[[TrialResult], None]


FINISHED: str = Searcher.FINISHED
MAX_EARLY_DEATHS = 3
"""Times that a trial is handed out again because its process died before the trial began."""


class DriverOnly:
    """Of objects that Tune would like to pickle or copy: they live on the driver, and their truth is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> DriverOnly:
        return self


class SweepSearcher(DriverOnly, Searcher):
    """Hands out trials and takes their ends; each is in the ledger before it runs, and told to Optuna when it ends."""

    def __init__(
        self,
        state: SweepState,
        study: SearchStudy,
        *,
        trial_function: str,
        final_function: str,
        on_result: OnResult,
        untold: list[TrialResult],
        stop: Callable[[str], None],
        announce: Callable[[str], None],
        caches: str | None = None,
    ) -> None:
        super().__init__()
        self._state = state
        self._study = study
        self._trial_function = trial_function
        self._final_function = final_function
        self._on_result = on_result
        self._adopted = state.unfinished()
        self._points = first_points(state.settings)
        self._by_tune_id: dict[str, str] = {}
        self._untold = untold
        self._stop = stop
        self._announce = announce
        self._caches = caches
        self.error: Exception | None = None
        """What made it impossible to go on."""
        self._num_deaths: Counter[str] = Counter()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as a config, None while as many run as may, `FINISHED` when all have ended."""
        if self.error is not None:
            return FINISHED
        if len(self._by_tune_id) >= self._state.concurrency:
            return None
        try:
            entry = self._next_entry()
        except Exception as error:
            return self._give_up(error)
        if entry is None:
            return None if self._by_tune_id else FINISHED
        self._by_tune_id[trial_id] = entry.trial_id
        return {TRIAL: entry.trial_id, JOB: self._job(entry).to_json(), CACHES: self._caches}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Progress is the callback's business."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record an end. A trial that neither reported its result nor failed was interrupted: it stays unfinished.

        When the process dies that a trial was about to take over, Tune gives the trial up at once; it is handed out
        again.
        """
        ours = self._by_tune_id.pop(trial_id, None)
        if ours is None or self.error is not None:
            return
        try:
            self._take_end(ours, result, error)
        except Exception as problem:
            self._give_up(problem)

    def _take_end(self, ours: str, result: dict[str, Any] | None, error: bool) -> None:
        if result and result.get("result"):
            self._state.stopping.pop(ours, None)  # its last report was its end
            ended = TrialResult.from_dict(json.loads(result["result"]), self._state.ledger.output_dir(ours))
            if not self._runs_again_with_more_memory(ended):
                self._finish(ended)
        elif ours in self._state.stopping:
            self._finish(self._unfinished(ours, Status.STOPPED, self._state.stopping.pop(ours)))
        elif error and ours not in self._state.running and self._num_deaths[ours] < MAX_EARLY_DEATHS:
            self._num_deaths[ours] += 1
            self._adopted.append(self._state.ledger.entries[ours])
        elif error:
            self._finish(self._lost(ours))

    def _runs_again_with_more_memory(self, ended: TrialResult) -> bool:
        """A trial that ran out of memory goes on from its checkpoint, with one fewer beside it from now on."""
        short = ended.status is Status.FAILED and str(ended.error).startswith((OUT_OF_MEMORY, OUT_OF_GPU_MEMORY))
        if not short or self._state.concurrency == 1:
            return False
        self._state.concurrency -= 1
        self._state.running.pop(ended.trial_id, None)
        self._adopted.append(self._state.ledger.entries[ended.trial_id])
        self._announce(
            f"trial {ended.trial_id}: {str(ended.error).split(':')[0]}; it goes on from its checkpoint, "
            f"and from now on {self._state.concurrency} run at once"
        )
        return True

    def save(self, checkpoint_path: str) -> None:
        """The ledger and Optuna's storage hold everything; Tune's snapshot of the searcher stays empty."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is in the snapshot."""

    def _give_up(self, error: Exception) -> str:
        """Ledger or storage failed: keep the error, which Tune would wrap beyond recognition, and end the sweep."""
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
        return None if entry is None else self._state.start(entry)

    def _job(self, entry: Entry) -> Job:
        settings = self._state.settings
        gpus = settings.resources.gpus_per_trial
        return Job(
            trial_id=entry.trial_id,
            output_dir=str(self._state.ledger.output_dir(entry.trial_id)),
            settings=trial_values(settings, entry),
            params={} if entry.role == "final" else entry.params,
            trial_function=self._final_function if entry.role == "final" else self._trial_function,
            working_dir=str(Path.cwd()),
            python_path=[str(Path(entry).resolve()) for entry in sys.path],
            gpu_memory_share=gpus if 0 < gpus < 1 else None,
            max_silent_seconds=settings.resources.max_silent_seconds,
            mirror=trials_uri(settings),
            source=entry.trial_id.removesuffix(FINAL) if entry.role == "final" else None,
        )

    def _lost(self, trial_id: str) -> TrialResult:
        running = self._state.running.get(trial_id)
        reason = (running and running.last_error) or "its process died"
        if (self._state.ledger.output_dir(trial_id) / HANG).exists():
            silent = self._state.settings.resources.max_silent_seconds
            reason = f"it made no progress for {silent:g} s ({HANG} in its folder says where)"
        times = (running.retries if running else 0) + 1
        error = f"{reason} (started {times} times; resources.max_failures allows no more)"
        return self._unfinished(trial_id, Status.FAILED, error)

    def _unfinished(self, trial_id: str, status: Status, error: str) -> TrialResult:
        """The result of a trial that did not come to its own."""
        entry = self._state.ledger.entries[trial_id]
        return TrialResult(
            trial_id=trial_id,
            config_hash="",
            method=entry.method,
            seed=self._state.settings.trial.seed + entry.seed_index,
            status=status,
            metrics={},
            output_dir=self._state.ledger.output_dir(trial_id),
            error=error,
        )

    def _finish(self, result: TrialResult) -> None:
        result = self._state.finish(result)
        entry = self._state.ledger.entries[result.trial_id]
        if entry.role == "search" and (point := self._state.ended(entry.point)) is not None:
            self._untold.append(point)
        tell_optuna(self._state, self._study, self._untold)
        self._on_result(result)


def tell_optuna(state: SweepState, study: SearchStudy, untold: list[TrialResult]) -> None:
    """Tell Optuna what has ended and empty the list; successes wait until the tuned reference tells feasibility.

    Args:
        state: the sweep.
        study: where to tell it.
        untold: searched points, all their seeds together.
    """
    waiting = [result for result in untold if state.floor_is_pending and result.status is not Status.FAILED]
    for result in itertools.filterfalse(waiting.__contains__, untold):
        number = state.point(result.trial_id)[0].number
        assert number is not None
        values = [result.metrics.get(objective.metric) for objective in state.settings.objectives]
        violations = state.violations(result)
        if result.status in (Status.INFEASIBLE, Status.STOPPED):
            study.stop(number, violations=violations)
        elif result.status is Status.FAILED or None in values:
            study.fail(number)
        else:
            study.tell(number, [value for value in values if value is not None], violations=violations)
    untold[:] = waiting


def trial_values(settings: SweepSettings, entry: Entry) -> dict[str, Any]:
    """The settings of a trial as plain values, but for the searched ones; a reference's have its method."""
    trial = settings.trial
    name = entry.trial_id if entry.role == "reference" else f"{settings.name}/{entry.trial_id}"
    changes: dict[str, Any] = {"name": name, "seed": trial.seed + entry.seed_index}
    attack, point = trial.attack, entry.point.removesuffix(FINAL)
    if point in ordered_references(settings):
        trial = reference_settings(settings, point)
    if entry.role == "final":
        trial = override(trial, entry.params)
        base = entry.trial_id.removesuffix(FINAL)
        origin = Origin(sweep=settings.name, trial_id=base, rule="final attack")
        changes["origin"], attack = origin, settings.final_attack()
    changes["attack"] = attack.model_copy(update={"seed": attack.seed + REPEAT_SEED * entry.seed_index})
    return trial.model_copy(update=changes).model_dump(mode="json")
