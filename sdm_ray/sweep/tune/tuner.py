"""Runs the trials of a sweep with Ray Tune."""

from __future__ import annotations

from pathlib import Path

from ray import tune
from ray.exceptions import RayError
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.error import TuneError

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.sweep.cluster.failures import classify
from sdm_ray.sweep.cluster.watch import ClusterWatch
from sdm_ray.sweep.interrupt import StopSwitch
from sdm_ray.sweep.records.folder import RESUME_HINT
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.tune.callbacks import SweepCallback, SweepScheduler, SweepStopper
from sdm_ray.sweep.tune.hungry import treat_as_deaths
from sdm_ray.sweep.tune.jobs import TRIAL
from sdm_ray.sweep.tune.searcher import STOPPED_BY_MACHINE, SweepSearcher
from sdm_ray.sweep.tune.trainable import TrialTrainable


def run_trials(
    recorder: Recorder,
    searcher: SweepSearcher,
    callback: SweepCallback,
    *,
    switch: StopSwitch,
    folder: Path,
    watch: ClusterWatch,
) -> None:
    """Run trials until the searcher has none left, the switch is set, or Ray is lost (which sets the switch).

    Raises:
        UsageError: if the searcher raised one.
        RunError: if Ray, the ledger or Optuna's storage failed.
    """
    treat_as_deaths()
    resources = recorder.state.settings.resources
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=SweepScheduler(recorder, on_error=searcher.give_up),
            num_samples=-1,  # unlimited: the searcher returns FINISHED
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config[TRIAL],
            trial_dirname_creator=lambda trial: trial.config[TRIAL],
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            failure_config=FailureConfig(max_failures=resources.max_failures),
            stop=SweepStopper(switch),
            callbacks=[callback],
        ),
    )
    try:
        with watch:
            tuner.fit()
    except (TuneError, RayError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, RayError):
            raise  # a bug in this package, not a failure of Ray
        if watch.lost() and searcher.error is None:
            switch.request(STOPPED_BY_MACHINE)
            return
        raise stopped_by(searcher.error or error.__cause__ or error) from error
    if searcher.error is not None:
        raise stopped_by(searcher.error) from searcher.error


def stopped_by(error: BaseException) -> Exception:
    """Convert the error that ended a sweep early to one with a message that says how to resume."""
    if isinstance(error, UsageError):
        return error
    return RunError(f"the sweep stopped: {classify(error)}; what has ended is kept, {RESUME_HINT}")
