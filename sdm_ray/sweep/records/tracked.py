"""Reads the points of a sweep from its MLflow runs, for machines without the sweep's folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdm_ray.config import SweepSettings, load_settings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import FINAL, Status, TrialResult
from sdm_ray.frontier.points import Point
from sdm_ray.sweep.search.location import SETTINGS
from sdm_ray.sweep.state.ledger import Entry, Record
from sdm_ray.sweep.state.state import ROLES, SweepState
from sdm_ray.tracking.artifacts import download
from sdm_ray.tracking.runs import TrackedRun, find_run, sibling_runs

PASSING = ("train/", "rung/", "again/")
"""Prefixes of a run's metrics that are not part of its trial's result."""


def tracked_points(
    reference: str, *, uri: str | None = None, output_dir: str | Path = "runs"
) -> tuple[str, list[Point]]:
    """Name and points of a tracked sweep; see `tracked_sweep`."""
    name, _, points = tracked_sweep(reference, uri=uri, output_dir=output_dir)
    return name, points


def tracked_sweep(
    reference: str, *, uri: str | None = None, output_dir: str | Path = "runs"
) -> tuple[str, SweepSettings, list[Point]]:
    """Name, settings and points of the sweep of a run, equal to those from the sweep's folder.

    Args:
        reference: `mlflow:RUN_ID` of the sweep or of one of its trials.
        uri: see `sdm_ray.tracking.runs.find_run`.
        output_dir: parent folder of local sweeps.

    Raises:
        UsageError: if the run does not exist, or its sweep's run was deleted or has no `sweep.yaml`.
        RunError: if the server does not answer, or a run is not in the format that sdm-ray writes.
    """
    found = find_run(reference, uri=uri, output_dir=output_dir)
    runs = list(sibling_runs(found))
    parent = next((run for run in runs if run.is_sweep), None)
    if parent is None:
        raise UsageError(f"run {found.run_id} has no sweep any more: its parent run was deleted")
    with tempfile.TemporaryDirectory(prefix="sdm-ray-") as folder:
        file = download(parent, SETTINGS, Path(folder))
        if file is None:
            raise UsageError(
                f"run {parent.run_id} ({parent.name}) has no {SETTINGS}: no trial of its sweep has ended yet, or it "
                "was tracked by an earlier sdm-ray; read its folder instead"
            )
        settings = load_settings(SweepSettings, file)
        record = Record({entry.trial_id: entry for entry in _entries(runs)})
        return parent.name, settings, SweepState(settings, record).judgement.points()


def tracked_checks(reference: str, trial_id: str, *, uri: str | None = None) -> list[str]:
    """Names of the audit checks that a trial of a tracked sweep failed, in its final attack if there was one.

    Args:
        reference: `mlflow:RUN_ID` of the sweep or of one of its trials.
        trial_id: id of the trial.
        uri: see `sdm_ray.tracking.runs.find_run`.
    """
    runs = {run.trial_id: run for run in sibling_runs(find_run(reference, uri=uri))}
    run = runs.get(f"{trial_id}{FINAL}") or runs.get(trial_id)
    return [] if run is None else list(run.failed_checks)


def _entries(runs: Iterable[TrackedRun]) -> Iterable[Entry]:
    """Yield the entries of trials that have ended."""
    for run in runs:
        if run.is_sweep or "status" not in run.tags:
            continue
        try:
            yield _entry(run)
        except (KeyError, ValueError) as error:
            raise RunError(
                f"run {run.run_id} ({run.name}) is not as sdm-ray wrote it ({type(error).__name__}: {error}); "
                "delete it in MLflow, or read the sweep's folder instead"
            ) from None


def _entry(run: TrackedRun) -> Entry:
    tags = run.tags
    role: Any = tags["role"]
    if role not in ROLES:
        raise ValueError(f"role {role!r}")
    params = json.loads(tags["params"])
    status = Status(tags["status"])
    if status is Status.INFEASIBLE and any(name.startswith("harmful/") for name in run.metrics):
        status = Status.COMPLETE  # infeasible by the sweep's constraint, which is applied again; training did not stop
    result = TrialResult(
        trial_id=run.trial_id,
        config_hash=tags.get("config_hash", ""),
        method=tags["method"],
        seed=int(tags["seed"]),
        status=status,
        metrics={name: value for name, value in run.metrics.items() if not name.startswith(PASSING)},
        output_dir=Path(tags.get("output_dir", ".")),
        error=tags.get("error"),
        params=params,
        failed_checks=run.failed_checks,
        provenance={
            name.removeprefix("provenance."): value for name, value in tags.items() if name.startswith("provenance.")
        },
    )
    return Entry(
        run.trial_id,
        role,
        result.method,  # type: ignore[arg-type]
        number=int(tags["optuna_trial"]) if "optuna_trial" in tags else None,
        params=params,
        point=tags["point"],
        seed_index=int(tags["seed_index"]),
        result=result,
    )
