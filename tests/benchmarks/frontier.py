"""What it takes to get a frontier back, and what logging costs a trial.

    python -m tests.benchmarks.frontier [--trials 10000]

Writes a sweep of so many trials of 20 metrics each to Parquet and, as the tracker does, to MLflow in sqlite; then reads
its points from either and compares them. Last, the time that the driver gives to one report of 20 metrics.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm_ray.config import SweepSettings, parse_settings, to_yaml
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.figures.page import write_page
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import read_tables, write_tables
from sdm_ray.sweep.records.tracked import tracked_points
from sdm_ray.sweep.state.labels import trial_tags
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.tracking import open_tracker

NUM_METRICS, NUM_REPORTS = 20, 2000


def make_results(count: int, folder: Path) -> list[TrialResult]:
    """A cloud of trials, with as many metrics as a trial reports."""
    draw = np.random.default_rng(0)
    results = []
    for index in range(count):
        desired, harmful, *further = draw.uniform(0.4, 1.0, NUM_METRICS)
        metrics = {str(Metric.DESIRED_ACCURACY): desired, str(Metric.HARMFUL_WORST_ACCURACY): harmful}
        metrics |= {Metric.harmful_accuracy(20 + n): value for n, value in enumerate(further)}
        params = {"train.learning_rate": float(draw.uniform(1e-5, 1e-2))}
        results.append(
            TrialResult(
                trial_id=f"t{index:05d}", config_hash="0", method="mlac", seed=0, status=Status.COMPLETE,
                metrics=metrics, output_dir=folder, params=params,
            )
        )  # fmt: skip
    return results


def track(settings: SweepSettings, results: Sequence[TrialResult], run: Path) -> tuple[str, float]:
    """Deliver everything to MLflow; the sweep's id there, and the seconds."""
    started, tracker = time.perf_counter(), open_tracker(settings.tracking, run)
    tracker.start_sweep(settings.name, {}, {})
    for result in results:
        entry = Entry(result.trial_id, "search", "mlac", int(result.trial_id[1:]), result.params)
        tracker.start_trial(result.trial_id, result.params, trial_tags(entry))
        tracker.finish_trial(result)
    (run / "sweep.yaml").write_text(to_yaml(settings))
    tracker.log_sweep_artifacts([run / "sweep.yaml"])
    tracker._journal.wait_delivered(7200.0)  # type: ignore[attr-defined]
    tracker.finish_sweep("complete")
    from sdm_ray.tracking.client import new_client
    from sdm_ray.tracking.place import place_of

    client = new_client(place_of(run))
    (parent,) = client.search_runs(["1"], "tags.`sdm_ray.trial_id` = '-'")
    return str(parent.info.run_id), time.perf_counter() - started


def report_cost(folder: Path) -> float:
    """Seconds that the driver's own thread gives to a report, with the tracker at work beside it."""
    settings = parse_settings(SweepSettings, {"name": "reports", "output_dir": str(folder)})
    run = folder / "reports"
    run.mkdir()
    tracker = open_tracker(settings.tracking, run)
    tracker.start_sweep("reports", {}, {}, wait=False)
    tracker.start_trial("t0", {}, {})
    spent = 0.0
    for step in range(NUM_REPORTS):
        metrics = {f"train/metric{index}": float(step + index) for index in range(NUM_METRICS)}
        started = time.perf_counter()
        tracker.log("t0", metrics, step)
        spent += time.perf_counter() - started
        time.sleep(0.005)
    tracker.finish_sweep("complete")
    return spent / NUM_REPORTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    options: Any = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = {"name": "many", "output_dir": name, "references": [], "search": {"num_trials": options.trials}}
        document["space"] = {"train.learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}}
        document["search"]["max_desired_drop"] = None
        settings = parse_settings(SweepSettings, document)
        run = folder / "many"
        run.mkdir()
        results = make_results(options.trials, folder)
        points = [
            Point(
                trial_id=result.trial_id, method="mlac", desired=result.metrics[Metric.DESIRED_ACCURACY],
                harmful=result.metrics[Metric.HARMFUL_WORST_ACCURACY], params=result.params, metrics=result.metrics,
            )
            for result in results
        ]  # fmt: skip
        write_tables(points, run)
        started = time.perf_counter()
        read = read_tables(run)
        print(f"{options.trials} trials of {NUM_METRICS} metrics")
        print(f"from Parquet: {time.perf_counter() - started:.2f} s", flush=True)
        assert read == points
        started = time.perf_counter()
        write_page(points, run / "frontier.html", title="many")
        print(f"page written: {time.perf_counter() - started:.2f} s", flush=True)
        print(f"driver's time for a report: {1e6 * report_cost(folder):.0f} us", flush=True)
        run_id, seconds = track(settings, results, run)
        print(f"delivered to MLflow in sqlite: {seconds:.0f} s", flush=True)
        started = time.perf_counter()
        _, tracked = tracked_points(f"mlflow:{run_id}", output_dir=folder)
        print(f"from MLflow: {time.perf_counter() - started:.1f} s")
        assert [(point.trial_id, point.desired, point.harmful) for point in tracked] == [
            (point.trial_id, point.desired, point.harmful) for point in points
        ]


if __name__ == "__main__":
    main()
