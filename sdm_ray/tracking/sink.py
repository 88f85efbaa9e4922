"""Applies journaled calls to MLflow through its client; applying a record twice has the same effect as once.

Before a run is created, it is looked up by two tags, the ids of the sweep and the trial. Metrics have the time of the
call, so MLflow recognises duplicates; params and tags are the same when they are written again.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from sdm_ray.tracking.client import find_or_create_experiment, new_client
from sdm_ray.tracking.outbox import SWEEP_RUN, Record, RejectedError

log = logging.getLogger(__name__)

SWEEP_TAG, TRIAL_TAG = "sdm_ray.sweep_id", "sdm_ray.trial_id"
MAX_DIGEST = 36
"""Characters of a dataset's digest."""
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100
"""Most entries in one call of MLflow."""
_FINAL_CODES = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
_OF_THE_DATABASE = re.compile(r"\(\w+\.(InterfaceError|InternalError|DatabaseError)\)")
"""Lost connections and damaged files, which MLflow calls a bad request."""


class MlflowSink:
    """Applies records to one experiment; connects on first use.

    Args:
        uri: tracking URI.
        experiment: name of the experiment, created if needed.
        artifact_location: artifact location of a new experiment; None leaves it to the server.
        sweep_id: id of the sweep, which identifies its runs.
        system_metrics: log the machine's load to the sweep's run.
        fetch: copies the folder of an ended trial to this machine, before its artifacts are sent.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifact_location: str | None,
        sweep_id: str,
        *,
        system_metrics: bool = False,
        fetch: Callable[[str], None] = lambda trial_id: None,
    ) -> None:
        self.uri, self.sweep_id = uri, sweep_id
        self.experiment_id: str | None = None
        self._experiment, self._artifact_location = experiment, artifact_location
        self._client: Any = None
        self._runs: dict[str, str] = {}
        self._open: set[str] = set()
        self._connected = threading.Event()
        self._system_metrics, self._monitor = system_metrics, None
        self._fetch = fetch

    def connect(self) -> None:
        """Import MLflow, create a missing sqlite schema or experiment, and look up the sweep's runs."""
        if self._client is not None:
            return
        client = new_client(self.uri)
        self.experiment_id = find_or_create_experiment(client, self._experiment, self._artifact_location)
        self._runs.clear()
        for run in self._found(client):
            trial_id = run.data.tags[TRIAL_TAG]
            self._runs[trial_id] = run.info.run_id
            if run.info.status == "RUNNING":
                self._open.add(trial_id)
        self._client = client
        self._connected.set()

    def lost(self, begun: set[str]) -> set[str]:
        """Trials among `begun` whose runs no longer exist, except runs that were deleted through MLflow."""
        missing = begun - self._runs.keys()
        if missing:
            missing -= {run.data.tags[TRIAL_TAG] for run in self._found(self._client, deleted=True)}
        return missing

    def _found(self, client: Any, *, deleted: bool = False) -> Iterator[Any]:
        """The sweep's runs on the server."""
        from mlflow.entities import ViewType

        query, token = f"tags.`{SWEEP_TAG}` = '{self.sweep_id}'", None
        kind = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while True:
            page = client.search_runs(
                [self.experiment_id], query, run_view_type=kind, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def trial_runs(self) -> list[str]:
        """Run ids of the sweep's trials, in order of their start."""
        return [run_id for trial_id, run_id in self._runs.items() if trial_id != SWEEP_RUN]

    def run_id(self, trial_id: str) -> str | None:
        """Id of a trial's run; None if it does not exist yet."""
        return self._runs.get(trial_id)

    def lone_run(self) -> str | None:
        """Run id of a sweep that ended without trials, or of a single training."""
        return None if self._open or len(self._runs) != 1 else self._runs.get(SWEEP_RUN)

    def wait_connected(self, seconds: float) -> bool:
        """Wait until the experiment is known; False after the time limit."""
        return self._connected.wait(seconds)

    def apply(self, records: list[Record]) -> None:
        """See `outbox.Sink`."""
        self.connect()
        try:
            with _rejections():
                for is_log, group in groupby(records, lambda record: bool(record["call"] == "log")):
                    if is_log:
                        self._apply_logs(list(group))
                        continue
                    for record in group:
                        getattr(self, f"_apply_{record['call']}")(record)
        except RejectedError:
            raise
        except Exception:
            # A call whose answer was lost may have created its run: look the runs up again before the next attempt.
            self._client = None
            raise

    def _apply_start(self, record: Record) -> None:
        """Start or restart the run of the sweep or a trial."""
        trial_id = record["trial"]
        run_id = self._runs.get(trial_id)
        if run_id is None:
            tags = {SWEEP_TAG: self.sweep_id, TRIAL_TAG: trial_id}
            if trial_id != SWEEP_RUN:
                tags["mlflow.parentRunId"] = self._run(SWEEP_RUN)
            run = self._client.create_run(
                self.experiment_id, start_time=record["time"], tags=tags, run_name=record["name"]
            )
            self._runs[trial_id] = run_id = run.info.run_id
            known: dict[str, str] = {}
        else:
            self._client.update_run(run_id, status="RUNNING")
            known = self._client.get_run(run_id).data.params
        self._open.add(trial_id)
        # MLflow rejects a new value for an existing param; a resumed sweep may raise its number of trials.
        changed = {
            f"changed.{name}": value for name, value in record["params"].items() if known.get(name, value) != value
        }
        self._log_params(run_id, {name: value for name, value in record["params"].items() if name not in known})
        self._log_tags(run_id, record["tags"] | changed)
        if trial_id == SWEEP_RUN and self._system_metrics and self._monitor is None:
            self._monitor = _monitor(run_id, self.uri)

    def _apply_logs(self, records: list[Record]) -> None:
        by_trial: dict[str, list[Record]] = {}
        for record in records:
            by_trial.setdefault(record["trial"], []).append(record)
        for trial_id, group in by_trial.items():
            self._log_metrics(self._run(trial_id), group)

    def _apply_finish(self, record: Record) -> None:
        """End a trial's run: last metrics, tags, artifacts, status."""
        run_id = self._run(record["trial"])
        self._log_metrics(run_id, [record, *_by_step(record)])
        self._log_tags(run_id, record["tags"])
        try:
            self._fetch(record["trial"])
        except Exception as error:  # metrics matter more; send the files that are here
            log.warning("artifacts of %s cannot be fetched: %s", record["trial"], " ".join(str(error).split())[:200])
        for path in record["artifacts"]:
            self._log_artifact(run_id, Path(path))
        self._log_inputs(run_id, record.get("inputs", []))
        self._client.set_terminated(run_id, status=record["status"], end_time=record["time"])
        self._open.discard(record["trial"])

    def _apply_finish_sweep(self, record: Record) -> None:
        """End the sweep's run, and those of trials whose process was lost."""
        for trial_id in sorted(self._open - {SWEEP_RUN}):
            self._client.set_terminated(self._runs[trial_id], status="KILLED", end_time=record["time"])
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._client.set_terminated(self._run(SWEEP_RUN), status=record["status"], end_time=record["time"])
        self._open.clear()

    def _apply_tags(self, record: Record) -> None:
        self._log_tags(self._run(record["trial"]), record["tags"])

    def _apply_artifacts(self, record: Record) -> None:
        for path in record["artifacts"]:
            self._log_artifact(self._run(record["trial"]), Path(path))

    def _log_artifact(self, run_id: str, path: Path) -> None:
        if path.is_file():
            self._client.log_artifact(run_id, str(path))
        elif path.is_dir():
            self._client.log_artifacts(run_id, str(path), path.name)

    def _log_inputs(self, run_id: str, inputs: list[dict[str, str]]) -> None:
        """Log data and encoder as MLflow datasets, which it identifies by name and digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(
                    name=given["name"],
                    digest=given["digest"][:MAX_DIGEST],
                    source_type="sdm-ray",
                    source=json.dumps({"uri": given["source"], "sha256": given["digest"]}),
                ),
                [InputTag("mlflow.data.context", given["context"])],
            )
            for given in inputs
        ]
        if datasets:
            self._client.log_inputs(run_id, datasets)

    def _run(self, trial_id: str) -> str:
        try:
            return self._runs[trial_id]
        except KeyError:
            raise RejectedError(f"trial {trial_id} was never started") from None

    def _log_metrics(self, run_id: str, records: list[Record]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record["metrics"].items()
        ]
        for part in _parts(metrics, MAX_METRICS):
            self._client.log_batch(run_id, metrics=part)

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        for part in _parts([Param(name, value) for name, value in params.items()], MAX_PARAMS):
            self._client.log_batch(run_id, params=part)

    def _log_tags(self, run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for part in _parts([RunTag(name, value) for name, value in tags.items()], MAX_TAGS):
            self._client.log_batch(run_id, tags=part)


@contextmanager
def _rejections() -> Iterator[None]:
    """Turn permanent errors of MLflow into `RejectedError`, so that one bad record does not block the rest."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in _FINAL_CODES and not _OF_THE_DATABASE.search(str(error)):
            raise RejectedError(" ".join(str(error).split())[:200]) from error
        raise


def _by_step(record: Record) -> Iterator[Record]:
    """Split the series of a record into one record per step."""
    for name, values in record.get("series", {}).items():
        for step, value in values:
            yield {"time": record["time"], "step": step, "metrics": {name: value}}


def _monitor(run_id: str, uri: str) -> Any:
    """Start a thread that logs the machine's load to a run; None, with a warning, if that fails."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        monitor.start()
    except Exception as error:  # optional; needs psutil and its own connection
        log.warning("tracking.system_metrics: nothing is sampled: %s", " ".join(str(error).split())[:200])
        return None
    return monitor


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
