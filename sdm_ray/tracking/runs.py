"""Lookup of existing runs by `mlflow:RUN_ID`, by trial or by sweep."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import MALFORMED
from sdm_ray.core.suggest import nearest
from sdm_ray.tracking.address import (
    PREFIX,
    check_address,
    masked,
    sqlite_file,
    sqlite_uri,
    sweep_id_file,
    unreachable,
)
from sdm_ray.tracking.answer import within
from sdm_ray.tracking.client import new_client
from sdm_ray.tracking.naming import SEPARATOR
from sdm_ray.tracking.outbox import SWEEP_RUN
from sdm_ray.tracking.place import DATABASE, place_of
from sdm_ray.tracking.place import URI as URI_VARIABLE
from sdm_ray.tracking.series import FAILED_CHECKS, KEPT_TAG, measured
from sdm_ray.tracking.sink import SWEEP_TAG, TRIAL_TAG

MAX_NAMES = 5000
"""Most runs whose names are compared for a suggestion."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """An MLflow run created by sdm-ray."""

    uri: str
    """Tracking URI where it was found."""
    run_id: str
    name: str
    experiment_id: str
    sweep_id: str
    """Id of its sweep, shared by all runs of the sweep."""
    trial_id: str
    """`-` for the run of the sweep itself."""
    status: str
    """MLflow's status: RUNNING, FINISHED, FAILED, KILLED."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Values as the trial measured them; the last value for metrics with steps."""

    @property
    def is_sweep(self) -> bool:
        """Whether it is a sweep's own run, the parent of its trials."""
        return self.trial_id == SWEEP_RUN

    @property
    def failed_checks(self) -> dict[str, str]:
        """Observations of failed checks of the audit, by name; empty for runs tracked before this was recorded."""
        try:
            found = json.loads(self.tags.get(FAILED_CHECKS, "{}"))
            return {str(name): str(said) for name, said in found.items()}
        except MALFORMED:
            return {}


def find_run(reference: str, *, uri: str | None = None, output_dir: str | Path = "runs") -> TrackedRun:
    """Find the run of an `mlflow:RUN_ID`.

    Args:
        reference: the text; the prefix is optional.
        uri: tracking URI. None takes `$MLFLOW_TRACKING_URI`; if unset, the sqlite file in `output_dir`, shared or of
            one sweep, that contains the run.
        output_dir: folder of sweeps.

    Raises:
        UsageError: if there is no such run, or sdm-ray did not create it; the nearest ids are suggested.
        RunError: if the server does not answer.
    """
    run_id = reference.removeprefix(PREFIX)
    if not run_id:
        raise UsageError(f"{reference!r} names no run; write mlflow:RUN_ID, with the id that MLflow shows for the run")
    uri = uri or os.environ.get(URI_VARIABLE) or _holding(run_id, Path(output_dir))
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise unreachable(uri, " ".join(str(error).split())[:200]) from None
        raise UsageError(f"no run {run_id!r} at {masked(uri)}{_suggestion(run_id, _ids(client))}") from None
    return _tracked(uri, run)


def run_of_trial(sweep_dir: Path, trial_id: str, *, uri: str | None = None) -> TrackedRun:
    """Find the run of a trial, given the folder of its sweep.

    Args:
        sweep_dir: the sweep's folder.
        trial_id: the trial.
        uri: `tracking.uri` of the sweep; None takes the place recorded in the folder.

    Raises:
        UsageError: if the sweep was not tracked, or the trial has no run.
        RunError: if the server does not answer.
    """
    mark = sweep_id_file(sweep_dir)
    if not mark.is_file():
        raise UsageError(f"sweep {sweep_dir} was not tracked (tracking.enabled was false), so there is no run to use")
    sweep_id = mark.read_text(encoding="utf-8").strip()
    uri = uri or place_of(sweep_dir)
    found = find_trial(uri, sweep_id, trial_id)
    if found is None:
        raise UsageError(f"trial {trial_id!r} of {sweep_dir} has no run at {masked(uri)}")
    folder = sweep_dir.absolute() / "trials" / found.trial_id  # the sweep may have been moved since it was tracked
    return replace(found, tags={**found.tags, "output_dir": str(folder)}) if folder.is_dir() else found


def find_trial(uri: str, sweep_id: str, trial_id: str) -> TrackedRun | None:
    """Find the run of a trial, given the id of its sweep; None if there is none.

    Raises:
        UsageError: for an invalid URI.
        RunError: if the server does not answer.
    """
    client = connect(uri)
    query = f"tags.`{SWEEP_TAG}` = '{sweep_id}' and tags.`{TRIAL_TAG}` = '{trial_id}'"
    experiments = [experiment.experiment_id for experiment in answer(uri, client.search_experiments)]
    found = answer(uri, partial(client.search_runs, experiments, query))
    return _tracked(uri, found[0]) if found else None


def sibling_runs(run: TrackedRun) -> Iterator[TrackedRun]:
    """All runs of a run's sweep, including the sweep's own, in order of their start.

    Raises:
        RunError: if the server does not answer.
    """
    client, token = connect(run.uri), None
    query = f"tags.`{SWEEP_TAG}` = '{run.sweep_id}'"
    while True:
        ask = partial(client.search_runs, [run.experiment_id], query, order_by=["attributes.start_time ASC"])
        page = answer(run.uri, partial(ask, max_results=1000, page_token=token))
        for found in page:
            yield _tracked(run.uri, found)
        token = page.token
        if not token:
            return


def connect(uri: str) -> Any:
    """Connect to an existing tracking server or database.

    Raises:
        UsageError: for an invalid URI, or a sqlite file that does not exist.
        RunError: if there is no answer.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UsageError(f"tracking URI {masked(uri)!r}: there is no file {file}")
    check_address(uri)
    made: list[Any] = []

    def attempt() -> None:
        made.append(new_client(uri))
        if file is None:
            made[0].search_experiments(max_results=1)

    within(attempt, uri)
    return made[0]


def _holding(run_id: str, output_dir: Path) -> str:
    """URI of the database below a folder that contains a run."""
    known: dict[str, str] = {}
    files = [*output_dir.glob(DATABASE), *sorted(output_dir.glob(f"*/{DATABASE}"))]
    for file in files:
        try:
            with closing(sqlite3.connect(f"file:{file.absolute()}?mode=ro", uri=True)) as database:
                if database.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone():
                    return sqlite_uri(file)
                known |= dict(database.execute("SELECT run_uuid, name FROM runs LIMIT ?", (MAX_NAMES,)))
        except sqlite3.Error:  # not MLflow's, or damaged: it cannot contain the run
            continue
    looked = f"the {len(files)} database(s) of {output_dir}" if files else f"{output_dir}, which holds no tracked sweep"
    raise UsageError(
        f"no run {run_id!r} in {looked}{_suggestion(run_id, known)}; for a server, give its address "
        f"(--tracking-uri, or {URI_VARIABLE})"
    )


def _ids(client: Any) -> dict[str, str]:
    """Ids and names of runs."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_id: run.info.run_name for run in client.search_runs(experiments, max_results=1000)}


def _suggestion(run_id: str, known: Mapping[str, str]) -> str:
    close = nearest(run_id, known, similarity=0.5)
    named = [key for key, name in known.items() if run_id in (name, name.partition(SEPARATOR)[0])][:3]
    if named:
        return f"; runs of that name: {', '.join(named)}"
    return f"; did you mean {close[0]} ({known[close[0]]})?" if close else ""


def _tracked(uri: str, run: Any) -> TrackedRun:
    tags = run.data.tags
    if SWEEP_TAG not in tags or TRIAL_TAG not in tags:
        raise UsageError(f"run {run.info.run_id} at {masked(uri)} was not made by sdm-ray (it has no tag {SWEEP_TAG})")
    return TrackedRun(
        uri=uri,
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment_id=run.info.experiment_id,
        sweep_id=tags[SWEEP_TAG],
        trial_id=tags[TRIAL_TAG],
        status=run.info.status,
        tags=tags,
        params=run.data.params,
        metrics=_metrics(run),
    )


def _metrics(run: Any) -> dict[str, float]:
    try:
        return measured(run.data.metrics, run.data.tags)
    except ValueError as error:
        raise RunError(
            f"run {run.info.run_id} ({run.info.run_name}) is not as sdm-ray wrote it (its tags {KEPT_TAG}* hold no "
            f"JSON: {error}); delete it in MLflow, or read the trial's result.json instead"
        ) from None


def answer(uri: str, ask: Any) -> Any:
    """Result of a request to the server.

    Raises:
        RunError: if it is refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except (MlflowException, OSError) as error:
        raise RunError(f"MLflow at {masked(uri)} refused: {' '.join(str(error).split())[:300]}") from None
