"""Ray Tune without Ray: a sweep's trials run one after the other, or in turns, in the process of the test.

For tests of what a sweep decides. Processes, their deaths and signals need the real one.
`tests/sweep/test_processes.py` runs the same whole sweep on both.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune import RunConfig, Trainable, TuneConfig
from ray.tune.schedulers import TrialScheduler

NUM_CPUS = 2.0


@contextmanager
def in_process() -> Iterator[None]:
    """Run the trials of sweeps here, on a cluster that pretends to have two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.tune.Tuner", InProcessTuner)
        patch.setattr("ray.is_initialized", lambda: True)
        patch.setattr("ray.cluster_resources", lambda: {"CPU": NUM_CPUS})
        yield


@dataclass
class Trial:
    """What callbacks and schedulers see of `ray.tune.experiment.Trial`."""

    trial_id: str
    config: dict[str, Any]
    last_result: dict[str, Any] = field(default_factory=dict)


class InProcessTuner:
    """Calls searcher, scheduler, stopper and callbacks in the order of Tune's controller, with reused trainables."""

    def __init__(self, trainable: type[Trainable], *, tune_config: TuneConfig, run_config: RunConfig) -> None:
        self._trainable, self._idle = trainable, list[Trainable]()
        self._searcher, self._scheduler = tune_config.search_alg, tune_config.scheduler
        self._stopper, self._callbacks = run_config.stop, run_config.callbacks
        self._trials: list[Trial] = []
        self._running: dict[str, tuple[Trial, Trainable]] = {}

    def fit(self) -> None:
        """Run trials until the searcher has no more of them, or the stopper ends it."""
        gc.freeze()  # every trial begins with a collection, which takes long among all that tests have imported
        try:
            self._run()
        finally:
            gc.unfreeze()

    def _run(self) -> None:
        while self._start_trials() | bool(self._running) and not self._stopper.stop_all():
            for trial, trainable in list(self._running.values()):
                self._step(trial, trainable)
            self._call("on_step_end")
        for trial, _ in list(self._running.values()):
            self._end(trial)
        for trainable in self._idle:
            trainable.stop()

    def _start_trials(self) -> bool:
        """Start as many as the searcher gives; whether it may still give more."""
        while True:
            trial_id = f"{len(self._trials):05d}"
            config = self._searcher.suggest(trial_id)
            if not isinstance(config, dict):
                return config is None
            trial = Trial(trial_id, config)
            self._trials.append(trial)
            self._running[trial_id] = trial, self._trainable_for(config)
            self._call("on_trial_start", trial=trial)

    def _trainable_for(self, config: dict[str, Any]) -> Trainable:
        if not self._idle:
            return self._trainable(config)
        trainable = self._idle.pop()
        assert trainable.reset_config(config)
        return trainable

    def _step(self, trial: Trial, trainable: Trainable) -> None:
        result = trainable.step()
        decision = TrialScheduler.STOP if result["done"] else self._scheduler.on_trial_result(self, trial, result)
        if decision != TrialScheduler.STOP:
            self._searcher.on_trial_result(trial.trial_id, result)
        trial.last_result = result
        self._call("on_trial_result", trial=trial, result=result)
        if decision == TrialScheduler.STOP:
            self._end(trial)

    def _end(self, trial: Trial) -> None:
        _, trainable = self._running.pop(trial.trial_id)
        self._scheduler.on_trial_complete(self, trial, trial.last_result)
        self._searcher.on_trial_complete(trial.trial_id, result=trial.last_result)
        self._idle.append(trainable)

    def _call(self, hook: str, **info: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, hook)(iteration=0, trials=self._trials, **info)
