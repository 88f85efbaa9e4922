"""Runs a sweep from its settings to its frontier: Ray Tune runs the trials, Optuna suggests them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdm_ray.config import SweepSettings, load_own_modules
from sdm_ray.core.errors import RunError, machine_fault
from sdm_ray.core.output import unbreakable_output
from sdm_ray.core.result import RESULT, TrialResult
from sdm_ray.sweep.announcements import Announcements
from sdm_ray.sweep.cluster.choice import ClusterChoice, check_output_dir, choose_cluster
from sdm_ray.sweep.cluster.connection import cluster, quiet_logs, ray_environment
from sdm_ray.sweep.cluster.functions import check_function
from sdm_ray.sweep.copies import fetch_trial, mirrored
from sdm_ray.sweep.frontier_writer import FrontierWriter
from sdm_ray.sweep.interrupt import StopSwitch, stop_on_signals
from sdm_ray.sweep.outcome import SweepOutcome
from sdm_ray.sweep.records.details import details_of
from sdm_ray.sweep.records.folder import RESUME_HINT, claimed_folder, settle_pooling
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.location import SETTINGS, check_location
from sdm_ray.sweep.search.models import ordered_references
from sdm_ray.sweep.standing import SweepReport, record_again
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.view.live import View, default_view
from sdm_ray.tracking import Tracker, open_tracker
from sdm_ray.tracking.outbox import SWEEP_RUN
from sdm_ray.tracking.place import choose_place

if TYPE_CHECKING:
    from sdm_ray.sweep.search.study import SearchStudy


@dataclass(kw_only=True)
class _Run:
    """State that the steps of one run share."""

    settings: SweepSettings
    folder: Path
    cluster: ClusterChoice
    trial_function: str
    final_function: str
    recorder: Recorder
    """The sweep's state and ledger."""
    view: View
    switch: StopSwitch
    tracker: Tracker
    frontier: FrontierWriter
    report: SweepReport
    announcements: Announcements
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digests of data and encoder, if known."""


def run_sweep(
    settings: SweepSettings,
    *,
    resume: bool = False,
    retry_infrastructure: bool = False,
    trial_function: str = "sdm_ray.trial.run:iterate_trial",
    final_function: str = "sdm_ray.trial.final:iterate_final",
    view: View | None = None,
    inputs: Mapping[str, str] | None = None,
) -> SweepOutcome:
    """Run a sweep, or the missing trials of an interrupted one.

    Ctrl-C and SIGTERM end it cleanly (`SweepOutcome.interrupted`). A failed trial does not end the sweep.

    Args:
        settings: the sweep's settings. Its folder is `output_dir/name`.
        resume: resume the sweep in that folder; if it is complete, only failed references and final attacks run again.
        retry_infrastructure: also repeat trials that were excluded after too many external kills.
        trial_function: `module:function` with the contract of `sdm_ray.trial.run.iterate_trial`.
        final_function: `module:function` with the contract of `sdm_ray.trial.final.iterate_final`.
        view: view of the running sweep; by default a live table in a terminal and plain lines elsewhere.
        inputs: digests of data and encoder, from `sdm_ray.trial.workspace.check_inputs`. If earlier results of the
            sweep have others, it does not start.

    Raises:
        UsageError: before anything starts, if the sweep cannot run as requested.
        RunError: if Ray or a storage fails; ended trials are kept, and `resume` continues from there.
    """
    settings = load_own_modules(settings)
    check_sweep(settings)
    check_location(settings)
    settings, note = settle_pooling(settings, resume=resume)
    check_function(trial_function)
    check_function(final_function)
    check_output_dir(settings)
    choice = choose_cluster(settings.resources)
    view = view or default_view()
    switch = StopSwitch()
    with ExitStack() as stack:
        stack.enter_context(unbreakable_output())
        stack.enter_context(stop_on_signals(switch, view.message))
        folder = stack.enter_context(claimed_folder(settings, resume=resume, inputs=inputs))
        stack.enter_context(ray_environment(local=choice.is_private))
        stack.enter_context(quiet_logs(folder / "sweep.log"))
        recorder = Recorder.open(settings, folder)
        stack.callback(recorder.ledger.close)
        view.start(f"sweep {settings.name}: {_size(settings)}, folder {folder}")
        stack.callback(view.close)
        if note is not None:
            view.message(note)
        if recorder.ledger.mended is not None:
            view.message(recorder.ledger.mended)
        if retry_infrastructure and (again := recorder.retry_infrastructure()):
            view.message(f"trials that were ended from outside are repeated: {', '.join(again)}")
        if resume:
            recorder.restart_failed_references()
            from sdm_ray.sweep.opening import restore_results

            if restored := restore_results(recorder.state):
                view.message(f"{RESULT} was damaged and is written anew from the ledger: {', '.join(restored)}")
        tracking = settings.tracking
        if tracking.enabled:
            place = choose_place(tracking, folder, own=settings.storage_path is not None)
            view.message(str(place))
            tracking = place.apply(tracking)
        tracker = open_tracker(tracking, folder, fetch=partial(fetch_trial, settings, folder))
        run = _Run(
            settings=settings,
            folder=folder,
            cluster=choice,
            trial_function=trial_function,
            final_function=final_function,
            recorder=recorder,
            view=view,
            switch=switch,
            tracker=tracker,
            frontier=FrontierWriter(
                folder,
                warn=view.message,
                publish=partial(_publish, tracker, folder),
                details=partial(details_of, recorder.state, folder, run_link=tracker.run_link),
            ),
            report=SweepReport(state=recorder.state, tracker=tracker),
            announcements=Announcements(recorder.state, view.message),
            inputs=inputs or {},
        )
        return _run_and_record(run)


def _size(settings: SweepSettings) -> str:
    search, models = settings.search, len(ordered_references(settings)) * settings.search.num_seeds
    return f"{search.num_trials} trials" if search.num_trials else f"{models} models"


def _run_and_record(run: _Run) -> SweepOutcome:
    """Run the search while threads track, draw and copy; the tracker's schema is created while Ray starts."""
    with mirrored(run.settings, run.folder):
        status = "failed"
        tags = {"folder": str(run.folder)}
        run.tracker.start_sweep(run.settings.name, run.settings.model_dump(mode="json"), tags, wait=False)
        if recorded := record_again(run.recorder.state, run.tracker):
            run.view.message(f"tracking has no record of trials that have ended ({recorded}); they are recorded again")
        try:
            _search(run)
            if run.switch.reason == "tracking" and run.tracker.error is not None:
                raise run.tracker.error
            status = "stopped" if run.switch.reason else "complete"
        except KeyboardInterrupt:
            status = "stopped"
            raise
        finally:
            _close(run, status)
    _fetch_trials(run)
    return _outcome(run, interrupted=status == "stopped")


def _search(run: _Run) -> None:
    """Run all missing trials, and compute the importances of the searched settings.

    A fault of the machine under Optuna's storage, such as a full disk, counts as an interruption.
    """
    from sdm_ray.sweep.tune.searcher import STOPPED_BY_MACHINE

    try:
        _search_to_the_end(run)
    except RunError as error:
        if machine_fault(error) is None:
            raise
        if run.switch.reason is None:
            run.view.message(f"{error}: the sweep ends; what has finished is kept, {RESUME_HINT}")
        run.switch.request(STOPPED_BY_MACHINE)


def _search_to_the_end(run: _Run) -> None:
    from sdm_ray.sweep.opening import catch_up, open_study
    from sdm_ray.sweep.tune.searcher import report_to_optuna

    study = open_study(run.recorder, run.folder, run.view.message, run.inputs)
    unreported = catch_up(run.recorder.state, study)
    report_to_optuna(run.recorder.state, study, unreported)
    if run.recorder.state.num_missing():
        _run_missing(run, study, unreported)
    study.note_sweep(run.tracker.run_link(SWEEP_RUN))
    run.frontier.importances = study.importances([objective.metric for objective in run.settings.objectives])


def _run_missing(run: _Run, study: SearchStudy, unreported: list[TrialResult]) -> None:
    """Connect to Ray and run the trials that have not ended."""
    with ExitStack() as stack:
        run.recorder.state.concurrency = stack.enter_context(
            cluster(run.settings.resources, owner=run.folder, announce=run.view.message)
        )
        stack.enter_context(stop_on_signals(run.switch, run.view.message))  # Ray has replaced the SIGTERM handler
        if run.switch.reason is not None:
            return
        caches = None
        if not run.cluster.is_private:  # nodes may have separate cache folders
            from sdm_ray.sweep.cluster.object_store import shared_caches

            caches = stack.enter_context(shared_caches(f"caches of {run.recorder.ledger.record.study_name}"))
        _tune(run, study, unreported, caches)


def _tune(run: _Run, study: SearchStudy, unreported: list[TrialResult], caches: str | None) -> None:
    from sdm_ray.sweep.cluster.watch import ClusterWatch, cluster_probe
    from sdm_ray.sweep.tune.callbacks import SweepCallback
    from sdm_ray.sweep.tune.jobs import JobMaker
    from sdm_ray.sweep.tune.searcher import STOPPED_BY_MACHINE, SweepSearcher
    from sdm_ray.sweep.tune.tuner import run_trials

    state = run.recorder.state
    jobs = JobMaker(
        settings=run.settings,
        folder=run.folder,
        trial_function=run.trial_function,
        final_function=run.final_function,
        caches=caches,
    )
    searcher = SweepSearcher(
        run.recorder,
        study,
        jobs,
        on_result=partial(_take_result, run),
        unreported=unreported,
        stop=run.switch.request,
        announce=run.view.message,
        link=run.tracker.run_link,
    )
    callback = SweepCallback(state, view=run.view, tracker=run.tracker, switch=run.switch)

    def lose(what: str) -> None:
        run.view.message(f"{what}: the sweep ends; what has finished is kept, {RESUME_HINT}")
        run.switch.request(STOPPED_BY_MACHINE)

    watch = ClusterWatch(cluster_probe(), on_loss=lose, end=partial(_close, run, "stopped"))
    searcher.is_lost = watch.lost
    run_trials(run.recorder, searcher, callback, switch=run.switch, folder=run.folder, watch=watch)
    if searcher.left_unfinished:
        run.switch.request(STOPPED_BY_MACHINE)
    if state.num_missing() and run.switch.reason is None:
        raise RunError(f"{state.num_missing()} trials were not run; {RESUME_HINT}")


def _take_result(run: _Run, result: TrialResult) -> None:
    """Forward a trial's result to the tracker, the frontier's files and the view."""
    state = run.recorder.state
    judged = state.judged_trial(result)
    run.announcements.of_result(result)
    run.tracker.finish_trial(judged)
    run.report.take(judged)
    run.frontier.update(state.judgement.points())
    run.view.finished(judged, state.snapshot())
    run.announcements.of_budget()


def _close(run: _Run, status: str) -> None:
    """Write the frontier's files a last time, publish them, and close the tracker."""
    run.frontier.update(run.recorder.state.judgement.points())
    run.frontier.close()
    run.report.close()
    if run.frontier.files:
        _publish(run.tracker, run.folder, run.frontier.files)
    run.tracker.finish_sweep(status)


def _publish(tracker: Tracker, folder: Path, files: list[Path]) -> None:
    tracker.log_sweep_artifacts([*files, folder / SETTINGS])


def _fetch_trials(run: _Run) -> None:
    """Download the folders of trials that ran on other nodes, so that `best` and `attack` find configs and models."""
    for entry in list(run.recorder.state.trials.values()):
        if entry.result is not None:
            fetch_trial(run.settings, run.folder, entry.trial_id)


def _outcome(run: _Run, *, interrupted: bool) -> SweepOutcome:
    state = run.recorder.state
    return SweepOutcome(
        folder=run.folder,
        results=state.results(),
        points=state.judgement.points(),
        infeasible=state.judgement.infeasible(),
        infrastructure={entry.trial_id: entry.killed for entry in state.infrastructure()},
        interrupted=interrupted,
        tracking_hint=run.tracker.ui_hint(),
        seconds=state.clock.elapsed_seconds,
    )
