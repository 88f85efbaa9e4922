"""What a sweep costs beside its trials.

    python -m tests.benchmarks.sweep_overhead [--trials 300] [--sampler random] [--tracking]
    python -m tests.benchmarks.sweep_overhead --simulated [--trials 10000] [--sampler tpe] [--tracking]

The first runs trials that do nothing through Ray, Optuna, ledger and frontier, two at a time, and reports trials a
minute once workers are warm and the driver's memory. The second leaves Ray out: an analytic response stands for
training, and a driver takes it through search, ledger, frontier and (on request) MLflow; it reports the cost of a trial
by tenths of the sweep, which must not grow, and the sampler's apart, which may.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import optuna

from sdm_ray.config import SweepSettings, TrialSettings, content_hash, parse_settings
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.frontier_writer import FrontierWriter
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.ledger import Entry, read_record
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.tune.searcher import report_to_optuna
from sdm_ray.tracking import open_tracker

RATE, WEIGHT = "train.learning_rate", "train.blocking.harmful_adapted_calibrated"
WARM_UP = 20
"""Trials that are not timed: workers start and import."""
NUM_METRICS = 20
"""Metrics of a result."""


def make_settings(folder: Path, options: Any) -> SweepSettings:
    """A sweep over two settings."""
    return parse_settings(
        SweepSettings,
        {
            "name": "overhead",
            "output_dir": str(folder),
            "space": {
                RATE: {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
                WEIGHT: {"type": "float", "low": 0.1, "high": 4.0},
            },
            "references": ["tuned"],
            "search": {"num_trials": options.trials, "sampler": options.sampler, "max_desired_drop": 0.1},
            "resources": {"max_concurrent_trials": 2},
            "tracking": {"enabled": options.tracking},
        },
    )


def response(trial_id: str, method: str, rate: float, weight: float, output_dir: Path) -> TrialResult:
    """A trade-off in closed form, with as many metrics as a trial reports."""
    desired = 0.96 - 0.03 * weight - 2.0 * abs(rate - 1e-3)
    metrics = {str(Metric.DESIRED_ACCURACY): desired, str(Metric.HARMFUL_WORST_ACCURACY): 0.8 - 0.06 * weight}
    metrics |= {f"harmful/n{index}/accuracy": 0.5 for index in range(NUM_METRICS - 2)}
    return TrialResult(
        trial_id=trial_id, config_hash="0", method=method, seed=0, status=Status.COMPLETE, metrics=metrics,
        output_dir=output_dir,
    )  # fmt: skip


def noop(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Generator[Progress, None, TrialResult]:
    """A trial that does nothing but what every trial does: its folder and its result."""
    yield Progress("train", 1, 1, {})
    blocking = trial.train.blocking.harmful_adapted_calibrated
    result = response(trial_id, trial.train.method, trial.train.learning_rate, blocking, output_dir)
    (output_dir / "result.json").write_text(json.dumps(result.to_dict() | {"config_hash": content_hash(trial)}))
    return result


class Clock(SilentView):
    """Notes when trials end."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def finished(self, result: TrialResult, snapshot: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())


def memory() -> float:
    """Most memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def through_ray(options: Any, folder: Path) -> None:
    """Trials that do nothing, through a whole sweep."""
    view, started = Clock(), time.perf_counter()
    outcome = run_sweep(
        make_settings(folder, options), trial_function="tests.benchmarks.sweep_overhead:noop", view=view
    )
    assert not outcome.failures, outcome.failures[:3]
    warm = view.times[WARM_UP:]
    seconds = (warm[-1] - warm[0]) / (len(warm) - 1)
    print(f"{len(view.times)} trials in {time.perf_counter() - started:.0f} s, start-up included")
    print(f"warm: {60 / seconds:.0f} trials a minute, {seconds:.3f} s each with two at a time")
    print(f"driver's memory: {memory():.0f} MiB")


def simulated(options: Any, folder: Path) -> None:
    """A driver's work without Ray and without trials."""
    settings = make_settings(folder, options)
    run = folder / settings.name
    (run / "trials").mkdir(parents=True)
    recorder = Recorder.open(settings, run)
    state = recorder.state
    study = SearchStudy.open(settings, storage=f"sqlite:///{run}/optuna.db", name="overhead", create=True)
    tracker = open_tracker(settings.tracking, run)
    tracker.start_sweep(settings.name, {}, {}, wait=False)
    writer = FrontierWriter(run, warn=print)
    recorder.start(Entry("tuned", "reference", "tuned"))
    recorder.finish(response("tuned", "tuned", 1e-3, 0.0, run))
    before, ours, sampler = memory(), [], []
    print(
        f"{options.trials} simulated trials, sampler {options.sampler}, tracking {'on' if options.tracking else 'off'}"
    )
    print("trials   ours, ms a trial   Optuna, ms a trial", flush=True)
    size = max(1, options.trials // 10)
    for index in range(options.trials):
        started = time.perf_counter()
        number, params = study.ask()
        asked = time.perf_counter()
        entry = recorder.start(Entry(f"t{index:05d}", "search", "mlac", number, params))
        state.begin(entry.trial_id)
        tracker.start_trial(entry.trial_id, params, {"method": "mlac"})
        result = recorder.finish(response(entry.trial_id, "mlac", params[RATE], params[WEIGHT], run))
        finished = time.perf_counter()
        report_to_optuna(state, study, [result])
        told = time.perf_counter()
        tracker.finish_trial(state.judged_trial(result))
        writer.update(state.judgement.points())
        state.snapshot()
        sampler.append(asked - started + told - finished)
        ours.append(time.perf_counter() - started - sampler[-1])
        if (index + 1) % size == 0:
            means = [1e3 * sum(values[-size:]) / size for values in (ours, sampler)]
            print(f"{index + 1:>6} {means[0]:>18.2f} {means[1]:>20.2f}", flush=True)
    closing = time.perf_counter()
    writer.close()
    tracker.finish_sweep("complete")
    print(f"closing {time.perf_counter() - closing:.1f} s; driver's memory {before:.0f} -> {memory():.0f} MiB")
    started = time.perf_counter()
    again = SweepState(settings, read_record(run))
    print(f"read from the ledger again: {time.perf_counter() - started:.2f} s, {len(again.judgement.points())} points")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true", help="leave Ray out")
    parser.add_argument("--trials", type=int, help="trials; 300, or 10000 simulated ones")
    parser.add_argument("--sampler", help="Optuna's sampler; random, or tpe for simulated trials")
    parser.add_argument("--tracking", action="store_true", help="log to MLflow in sqlite")
    options: Any = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options.trials = options.trials or (10_000 if options.simulated else 300)
    options.sampler = options.sampler or ("tpe" if options.simulated else "random")
    with tempfile.TemporaryDirectory() as folder:
        (simulated if options.simulated else through_ray)(options, Path(folder))


if __name__ == "__main__":
    main()
