"""One sweep from its settings to its frontier: Ray Tune runs the trials, Optuna searches."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdm_ray.config import SweepSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, pareto_front
from sdm_ray.sweep.cluster.connection import cluster, quiet_logs, ray_environment
from sdm_ray.sweep.cluster.mirror import Mirror, MirrorThread, below, sweep_uri, trials_uri
from sdm_ray.sweep.cluster.worker import check_function, classify
from sdm_ray.sweep.frontier_writer import FrontierWriter
from sdm_ray.sweep.interrupt import StopSwitch, stop_on_signals
from sdm_ray.sweep.records.folder import SETTINGS, claimed_folder
from sdm_ray.sweep.records.warm import earlier_results
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.models import ordered_references
from sdm_ray.sweep.state.ledger import Ledger
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.view.live import View, default_view
from sdm_ray.tracking import open_tracker

if TYPE_CHECKING:
    from sdm_ray.sweep.search.study import SearchStudy

RESUME_HINT = "run the same command with --resume to go on"


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """What a sweep leaves behind."""

    folder: Path
    """Holds `sweep.yaml`, `trials.jsonl`, `trials/`, the frontier's files and the logs."""
    results: list[TrialResult]
    """Every trial that ended, references first; `infeasible` where it misses the bound on desired accuracy."""
    points: list[Point]
    """Those that completed."""
    infeasible: dict[str, str] = field(default_factory=dict)
    """Why completed points miss a constraint, by id."""
    interrupted: bool = False
    """Trials are still missing; `resume_hint` says how to go on."""
    tracking_hint: str = ""
    """How to open the tracker's user interface."""
    seconds: float = 0.0
    """Wall-clock seconds of this run."""

    @property
    def front(self) -> list[Point]:
        """The Pareto front, by rising desired accuracy."""
        return pareto_front(self.points)

    @property
    def failures(self) -> list[TrialResult]:
        """Trials that failed, with their reasons."""
        return [result for result in self.results if result.status is Status.FAILED]

    @property
    def resume_hint(self) -> str:
        """What to say after an interruption."""
        return RESUME_HINT


def run_sweep(
    settings: SweepSettings,
    *,
    resume: bool = False,
    trial_function: str = "sdm_ray.trial.run:iterate_trial",
    final_function: str = "sdm_ray.trial.final:iterate_final",
    view: View | None = None,
) -> SweepOutcome:
    """Run a sweep, or what is missing of it.

    Ctrl-C and SIGTERM end it cleanly (`SweepOutcome.interrupted`); a trial that fails never ends it.

    Args:
        settings: the sweep. Its folder is `output_dir/name`.
        resume: go on with the sweep in that folder; a complete one is returned as it is.
        trial_function: `module:function` with the contract of `sdm_ray.trial.run.iterate_trial`.
        final_function: the same of `sdm_ray.trial.final.iterate_final`.
        view: what a person sees; by default a live table in a terminal and lines elsewhere.

    Raises:
        UsageError: before anything starts, when the sweep cannot work as asked.
        RunError: when Ray or storage fails; what has ended is kept, and `resume` goes on from there.
    """
    check_sweep(settings)
    for function in (trial_function, final_function):
        check_function(function)
    view = view or default_view()
    switch = StopSwitch()
    with ExitStack() as stack:
        stack.enter_context(stop_on_signals(switch, view.message))
        folder = stack.enter_context(claimed_folder(settings, resume=resume))
        stack.enter_context(ray_environment(local=settings.resources.ray_address is None))
        stack.enter_context(quiet_logs(folder / "sweep.log"))
        ledger = Ledger(folder)
        stack.callback(ledger.close)
        state = SweepState(settings, ledger)
        view.start(f"sweep {settings.name}: {_size(settings)}, folder {folder}")
        stack.callback(view.close)
        if resume:
            state.restart_failed_references()
        return _Run(settings, state, folder, (trial_function, final_function), view, switch).run()


def _size(settings: SweepSettings) -> str:
    search, models = settings.search, len(ordered_references(settings)) * settings.search.num_seeds
    return f"{search.num_trials} trials" if search.num_trials else f"{models} models"


def stopped_by(error: BaseException) -> Exception:
    """What ended a sweep before its time, as one sentence that says how to go on."""
    if isinstance(error, UsageError):
        return error
    while type(error).__name__ == "StorageInternalError" and error.__cause__ is not None:
        error = error.__cause__.__cause__ or error.__cause__  # what the database said; Optuna guesses at the reason
    return RunError(f"the sweep stopped: {classify(error)}; what has ended is kept, {RESUME_HINT}")


class _Run:
    """The parts of one run, wired together."""

    def __init__(
        self,
        settings: SweepSettings,
        state: SweepState,
        folder: Path,
        functions: tuple[str, str],
        view: View,
        switch: StopSwitch,
    ) -> None:
        self.settings = settings
        self.state = state
        self.folder = folder
        self.trial_function, self.final_function = functions
        self.view = view
        self.switch = switch
        self.tracker = open_tracker(settings.tracking, folder, fetch=self._fetch_trial)
        self.frontier = FrontierWriter(folder, warn=view.message, publish=self._publish)
        self.said_spent = False
        uri = sweep_uri(settings)
        self.mirror = None if uri is None else MirrorThread(Mirror(folder, uri, recursive=False))

    def run(self) -> SweepOutcome:
        """Side threads first: the tracker's schema and Ray start at the same time."""
        status = "failed"
        tags = {"folder": str(self.folder)}
        self.tracker.start_sweep(self.settings.name, self.settings.model_dump(mode="json"), tags, wait=False)
        try:
            self._search()
            if self.switch.reason == "tracking" and self.tracker.error is not None:
                raise self.tracker.error
            status = "stopped" if self.switch.reason else "complete"
        except KeyboardInterrupt:
            status = "stopped"
            raise
        finally:
            self.frontier.update(self.state.points())
            self.frontier.close()
            if self.frontier.files:
                self._publish(self.frontier.files)
            self.tracker.finish_sweep(status)
            if self.mirror is not None:
                self.mirror.close()
        self._fetch_trials()
        return SweepOutcome(
            folder=self.folder,
            results=self.state.results(),
            points=self.state.points(),
            infeasible=self.state.infeasible(),
            interrupted=status == "stopped",
            tracking_hint=self.tracker.ui_hint(),
            seconds=self.state.snapshot().elapsed_seconds,
        )

    def _publish(self, files: list[Path]) -> None:
        self.tracker.log_sweep_artifacts([*files, self.folder / SETTINGS])

    def _fetch_trials(self) -> None:
        """Bring the folders of trials that ran elsewhere, so that `best` and `attack` find configs and models."""
        for entry in list(self.state.ledger.entries.values()):
            if entry.result is not None:
                self._fetch_trial(entry.trial_id)

    def _fetch_trial(self, trial_id: str) -> None:
        uri, folder = trials_uri(self.settings), self.state.ledger.output_dir(trial_id)
        if uri is not None and not (folder / "result.json").exists():
            Mirror(folder, below(uri, trial_id)).pull()

    def _search(self) -> None:
        study = self._open_study()
        self._tell_earlier_results(study)
        if self.state.num_missing():
            self._run_missing(study)
        names = [objective.metric for objective in self.settings.objectives]
        self.frontier.importances = study.importances(names)

    def _run_missing(self, study: SearchStudy) -> None:
        with ExitStack() as stack:
            self.state.concurrency = stack.enter_context(cluster(self.settings.resources, owner=self.folder))
            stack.enter_context(stop_on_signals(self.switch, self.view.message))  # Ray has put its own SIGTERM in place
            if self.switch.reason is None:
                caches = None
                if self.settings.resources.ray_address is not None:  # nodes that may have cache folders of their own
                    from sdm_ray.sweep.cluster.object_store import shared_caches

                    caches = stack.enter_context(shared_caches(f"caches of {self.state.ledger.study_name}"))
                self._tune(study, caches)

    def _open_study(self) -> SearchStudy:
        from sdm_ray.sweep.search.study import SearchStudy

        file = self.folder / "optuna.db"
        storage = self.settings.storage or f"sqlite:///{file}"
        name = self.state.ledger.study_name
        if name is not None and self.settings.storage is None and not file.exists():
            study = SearchStudy.open(self.settings, storage=storage, name=name, create=True)
            entries = self.state.entries("search")
            study.rebuild({entry.number: entry.params for entry in entries if entry.number is not None})
            return study
        if name is not None:
            return SearchStudy.open(self.settings, storage=storage, name=name, create=False)
        name = f"{self.settings.name}-{uuid.uuid4().hex[:8]}"
        earlier = self.settings.search.warm_start
        known = [] if earlier is None else list(earlier_results(self.settings))
        study = SearchStudy.open(self.settings, storage=storage, name=name, create=True)
        if earlier is not None:
            self.view.message(f"warm start: {study.learn(known)} of {len(known)} points of {earlier} fit this space")
        self.state.ledger.name_study(name)
        return study

    def _tell_earlier_results(self, study: SearchStudy) -> None:
        """What a killed driver had not told Optuna, and trials that it had asked for and not begun."""
        from sdm_ray.sweep.tune.searcher import tell_optuna

        numbers = {entry.number: entry.point for entry in self.state.entries("search") if entry.number is not None}
        study.reconcile(numbers)
        ended = (self.state.ended(numbers[number]) for number in sorted(study.pending() & numbers.keys()))
        self.untold = [result for result in ended if result is not None]
        tell_optuna(self.state, study, self.untold)

    def _tune(self, study: SearchStudy, caches: str | None) -> None:
        from ray import tune
        from ray.exceptions import RayError
        from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
        from ray.tune.error import TuneError

        from sdm_ray.sweep.tune.callbacks import SweepCallback, SweepScheduler, SweepStopper
        from sdm_ray.sweep.tune.searcher import SweepSearcher
        from sdm_ray.sweep.tune.trainable import TRIAL, TrialTrainable

        resources = self.settings.resources
        searcher = SweepSearcher(
            self.state,
            study,
            trial_function=self.trial_function,
            final_function=self.final_function,
            on_result=self._on_result,
            untold=self.untold,
            stop=self.switch.request,
            announce=self.view.message,
            caches=caches,
        )
        tuner = Tuner(
            tune.with_resources(TrialTrainable, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=SweepScheduler(self.state),
                num_samples=-1,  # the searcher says when it is finished
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config[TRIAL],
                trial_dirname_creator=lambda trial: trial.config[TRIAL],
            ),
            run_config=RunConfig(
                name="tune",
                storage_path=str(self.folder),
                verbose=0,
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                failure_config=FailureConfig(max_failures=resources.max_failures),
                stop=SweepStopper(self.switch),
                callbacks=[SweepCallback(self.state, view=self.view, tracker=self.tracker, switch=self.switch)],
            ),
        )
        try:
            tuner.fit()
        except (TuneError, RayError) as error:
            raise stopped_by(searcher.error or error.__cause__ or error) from error
        if searcher.error is not None:
            raise stopped_by(searcher.error) from searcher.error
        if self.state.num_missing() and self.switch.reason is None:
            raise RunError(f"{self.state.num_missing()} trials were not run; {RESUME_HINT}")

    def _on_result(self, result: TrialResult) -> None:
        judged = self.state.judged_trial(result)
        entry = self.state.ledger.entries[result.trial_id]
        if (
            entry.point == "tuned"
            and self.settings.search.max_desired_drop is not None
            and not self.state.floor_is_pending
        ):
            self._say_floor()
        self.tracker.finish_trial(judged)
        self.frontier.update(self.state.points())
        self.view.finished(judged, self.state.snapshot())
        if not self.said_spent and (spent := self.state.spent()) is not None:
            self.said_spent = True
            self.view.message(f"{spent}: no further point is tried")

    def _say_floor(self) -> None:
        floor = self.state.desired_floor
        if floor is None:
            self.view.message(
                "the tuned reference failed, so search.max_desired_drop has nothing to compare with: "
                "no trial is held to it until --resume repeats the reference"
            )
        else:
            self.view.message(f"feasible: desired accuracy of at least {floor:.3f}")
