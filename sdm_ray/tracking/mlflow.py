"""Tracking with MLflow: a parent run for the sweep, a child run for each trial."""

from __future__ import annotations

import functools
import json
import logging
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sdm_ray.config import TrackingSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import move, write_bytes
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.tracking.address import check_address, is_refusal, masked, refused, sqlite_file, sweep_id_file, unreachable
from sdm_ray.tracking.client import prepare_mlflow
from sdm_ray.tracking.copies import ARTIFACTS as ARTIFACTS_FOLDER
from sdm_ray.tracking.copies import settle_copy
from sdm_ray.tracking.environment import environment_tags
from sdm_ray.tracking.mending import OLD_SCHEMA, is_own, move_damaged, upgrade
from sdm_ray.tracking.naming import MAX_TAG, finite_metrics, flat_params, legal_key, readable, tag_values
from sdm_ray.tracking.outbox import SWEEP_RUN, Delivery, Journal, Record
from sdm_ray.tracking.place import DEFAULT_EXPERIMENT, keep_place, place_of
from sdm_ray.tracking.series import FAILED_CHECKS, Series, kept_tags, split
from sdm_ray.tracking.sink import SWEEP_TAG, TRIAL_TAG, MlflowSink

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_SECONDS = 10.0
"""How long a server may take over its first answer."""
SCHEMA_TIMEOUT_SECONDS = 60.0
"""How long a database may take over it: it may have to create its tables."""
CLOSE_TIMEOUT_SECONDS, AWAY_TIMEOUT_SECONDS = 45.0, 3.0
"""How long the end of a sweep waits for the last records: from a server that answers, and from one that does not."""
HINT_TIMEOUT_SECONDS = 20.0
DESCRIPTION = "mlflow.note.content"
"""Tag with what MLflow shows as the description of a run: Markdown."""
MAX_SAID = 300
"""Characters of what a failed check saw, in the tag of its trial's run."""
MAX_COMPARED_RUNS = 100
"""MLflow's page of comparison names every run in its address."""
UI_PORT = 5000
UI_SERVER = f"http://127.0.0.1:{UI_PORT}"
"""Where the printed command shows what lies in a database."""
RUN_STATUS = {
    Status.COMPLETE: "FINISHED",
    Status.INFEASIBLE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.STOPPED: "KILLED",
}
ARTIFACTS = (
    "config.yaml", "result.json", "train.parquet", "trajectory.parquet", "trajectory.png", "attack.parquet",
    "attack.json", "audit.json", "model/README.md",
)  # fmt: skip
"""Files of a trial's folder that its run keeps; the folder itself is named by a tag."""
MODEL = "model"
"""Folder of the released model, in a trial's folder and among its run's artifacts (`tracking.log_models`)."""


def _never_raising(method: Callable[..., None]) -> Callable[..., None]:
    """A tracker's method that reports a fault of its own in the log and costs the sweep nothing."""

    @functools.wraps(method)
    def call(self: MlflowTracker, *args: Any, **options: Any) -> None:
        try:
            method(self, *args, **options)
        except Exception:
            log.exception("tracking loses a call (%s) by a fault of sdm-ray; the sweep goes on", method.__name__)

    return call


class MlflowTracker:
    """See `Tracker`. Calls are written to a journal in the sweep's folder and delivered by a thread of its own.

    Args:
        settings: tracking settings.
        sweep_dir: the sweep's folder, for `tracking/`.
        fetch: brings the folder of a trial that has ended to this machine.
    """

    def __init__(
        self, settings: TrackingSettings, sweep_dir: Path, *, fetch: Callable[[str], None] = lambda trial_id: None
    ) -> None:
        self._settings, self._sweep_dir, self._fetch = settings, sweep_dir.absolute(), fetch
        self._uri = settings.uri or place_of(self._sweep_dir, settings)
        self._experiment = settings.experiment or DEFAULT_EXPERIMENT
        self._sink: MlflowSink | None = None
        self._journal: Journal | None = None
        self._delivery: Delivery | None = None
        self._last: dict[tuple[str, str], tuple[int, float]] = {}
        self._steps: dict[str, int] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._series: dict[tuple[str, str], list[tuple[int, float]]] = {}
        self._begun: set[str] = set()
        self._finished: set[str] = set()
        self._objectives: Collection[str] = ()
        self._environment: dict[str, str] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process starts unconnected."""
        return (MlflowTracker, (self._settings, self._sweep_dir))

    @property
    def error(self) -> Exception | None:
        """See `Tracker.error`."""
        return None if self._delivery is None else self._delivery.error

    def start_sweep(self, name: str, settings: dict[str, Any], tags: dict[str, str], *, wait: bool = True) -> None:
        """See `Tracker.start_sweep`."""
        check_address(self._uri)
        self._objectives = [legal_key(objective["metric"]) for objective in settings.get("objectives") or ()]
        journal, sink = self._open()
        self._delivery = Delivery(journal, sink, self._connect)
        if wait:
            self._delivery.wait_connected()
        self._environment = environment_tags() | self._settings.tags
        self._start(SWEEP_RUN, name, settings, self._environment | tags)

    def _connect(self) -> None:
        """Find out whether the server is there; the tables of a new sqlite file are left to the first delivery.

        Raises:
            UsageError: when MLflow is not installed, or the experiment cannot be used.
            RunError: when the server does not answer.
        """
        assert self._sink is not None
        assert self._journal is not None
        prepare_mlflow()
        file = sqlite_file(self._uri)
        own = file is not None and is_own(file, self._sweep_dir)
        if file is not None and own:
            move_damaged(file)
        lost = file is not None and not file.exists()
        if not lost:
            try:
                within(self._sink.connect, self._uri)
            except RunError as error:
                if file is None or not own or OLD_SCHEMA not in str(error):
                    raise
                upgrade(file)
                within(self._sink.connect, self._uri)
            lost = bool(self._sink.lost(self._journal.begun()))
        if lost and self._journal.rewind():
            log.warning("runs are missing at %s: everything is recorded there again", masked(self._uri))

    @_never_raising
    def start_trial(
        self, trial_id: str, params: dict[str, Any], tags: dict[str, str], *, name: str | None = None
    ) -> None:
        """See `Tracker.start_trial`."""
        shown = {name: value for name, value in self._environment.items() if name.startswith("mlflow.")}
        self._start(trial_id, name or trial_id, params, shown | self._settings.tags | tags)

    @_never_raising
    def log(self, trial_id: str, metrics: dict[str, float], step: int) -> None:
        """See `Tracker.log`."""
        single, series = split(finite_metrics(metrics))
        single |= {name: values[at] for name, values in series.items() for at in values}
        fresh = {name: value for name, value in single.items() if self._last.get((trial_id, name), (-1, 0.0))[0] < step}
        if fresh:
            self._append("log", trial=trial_id, step=int(step), metrics=fresh)

    @_never_raising
    def log_sweep(self, metrics: dict[str, float], step: int) -> None:
        """See `Tracker.log_sweep`."""
        fresh = {}
        for name, value in finite_metrics(metrics).items():
            last_step, last_value = self._last.get((SWEEP_RUN, name), (-1, None))
            if step > last_step or (step == last_step and value != last_value):
                fresh[name] = value
        if fresh:
            self._append("log", trial=SWEEP_RUN, step=int(step), metrics=fresh)

    @_never_raising
    def annotate(self, tags: Mapping[str, Mapping[str, Any]], *, description: str | None = None) -> None:
        """See `Tracker.annotate`."""
        wanted = {trial_id: tag_values(values) for trial_id, values in tags.items()}
        if description is not None:
            wanted.setdefault(SWEEP_RUN, {})[DESCRIPTION] = readable(description, MAX_TAG)
        for trial_id, values in wanted.items():
            fresh = {name: value for name, value in values.items() if self._tags.get((trial_id, name)) != value}
            if fresh and trial_id in self._begun:
                self._append("tags", trial=trial_id, tags=fresh)

    @_never_raising
    def finish_trial(self, result: TrialResult) -> None:
        """See `Tracker.finish_trial`."""
        step = self._steps.get(result.trial_id, 0)
        fresh, last = {}, {}
        metrics = finite_metrics(result.metrics)
        single, series = split(metrics, self._objectives)
        first = {name: single[name] for name in self._objectives if name in single}  # MLflow shows them in this order
        alone: Series = {}
        for name, value in (first | single).items():
            last_step, last_value = self._last.get((result.trial_id, name), (-1, None))
            if last_value is None:
                alone[name] = {0: value}  # MLflow draws bars of what has no other step
            elif value != last_value:
                fresh[name], last[name] = value, last_step
        if step in last.values():
            step += 1
        tags = {
            "status": str(result.status),
            "method": result.method,
            "config_hash": result.config_hash,
            "seed": result.seed,
            "output_dir": result.output_dir,
            "error": result.error,
            FAILED_CHECKS: _checks(result.failed_checks),
            **{f"provenance.{name}": value for name, value in result.provenance.items()},
            **kept_tags(metrics, single),
        }
        folder = result.output_dir.absolute()
        whole = [str(folder / MODEL)] if self._settings.log_models else []
        self._append(
            "finish",
            trial=result.trial_id,
            step=step,
            metrics=fresh,
            series=self._unlogged(result.trial_id, alone | series),
            tags=tag_values(tags),
            artifacts=[*(str(folder / name) for name in ARTIFACTS), *whole],
            inputs=_inputs(result.provenance),
            status=RUN_STATUS[result.status],
        )

    @_never_raising
    def log_sweep_artifacts(self, files: list[Path]) -> None:
        """See `Tracker.log_sweep_artifacts`."""
        self._append("artifacts", trial=SWEEP_RUN, artifacts=[str(file.absolute()) for file in files])

    def finish_sweep(self, status: str) -> None:
        """See `Tracker.finish_sweep`."""
        self._append("finish_sweep", trial=SWEEP_RUN, status=RUN_STATUS.get(status, "KILLED"))  # type: ignore[call-overload]
        if self._delivery is None or self._journal is None:
            return
        if not self._delivery.close(CLOSE_TIMEOUT_SECONDS, AWAY_TIMEOUT_SECONDS) and self.error is None:
            log.warning(
                "%d tracking records wait in %s for %s; `sdm-ray sweep --resume` delivers them",
                self._journal.count_pending(),
                self._journal.path,
                masked(self._uri),
            )
        self._journal, self._is_closed = None, True

    def ui_hint(self) -> str:
        """The command that opens MLflow's interface, where one is needed, and the page that compares the trials.

        Waits some seconds for a new database, whose schema is still being created.
        """
        page = "#/experiments"
        if self._sink is not None and self._sink.wait_connected(0.0 if self._is_closed else HINT_TIMEOUT_SECONDS):
            page = _page(self._sink)
        if self._uri.startswith(("http://", "https://")):
            return f"{masked(self._uri).rstrip('/')}/{page}"
        command = f"mlflow ui --backend-store-uri {shlex.quote(masked(self._uri))} --host 127.0.0.1 --port {UI_PORT}"
        command += " --workers 1"
        return f"{command}\n{UI_SERVER}/{page}"

    def is_recorded(self, trial_id: str) -> bool:
        """See `Tracker.is_recorded`."""
        return trial_id in self._finished

    def run_link(self, trial_id: str) -> dict[str, str]:
        """See `Tracker.run_link`."""
        run_id = None if self._sink is None else self._sink.run_id(trial_id)
        if self._sink is None or run_id is None:
            return {}
        server = masked(self._uri).rstrip("/") if self._uri.startswith(("http://", "https://")) else UI_SERVER
        return {"mlflow_run": run_id, "mlflow_url": f"{server}/#/experiments/{self._sink.experiment_id}/runs/{run_id}"}

    def _open(self) -> tuple[Journal, MlflowSink]:
        folder = self._sweep_dir / "tracking"
        try:
            settle_copy(self._sweep_dir, self._uri, self._experiment)
            self._journal = Journal(folder)
            keep_place(self._sweep_dir, self._uri, self._experiment)
            sweep_id = _sweep_id(sweep_id_file(self._sweep_dir))
        except OSError as error:
            raise RunError(f"tracking cannot write to {folder}: {error.strerror or error}; free space there") from None
        file = sqlite_file(self._uri)
        artifacts = (file.parent / ARTIFACTS_FOLDER).as_uri() if file is not None else None
        self._sink = MlflowSink(
            self._uri,
            self._experiment,
            artifacts,
            sweep_id,
            system_metrics=self._settings.system_metrics,
            fetch=self._fetch,
        )
        for record in self._journal.records():
            self._remember(record)
        return self._journal, self._sink

    def _start(self, trial_id: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        self._append("start", trial=trial_id, name=name, params=flat_params(params), tags=tag_values(tags))

    def _append(self, call: str, **values: Any) -> None:
        """Put a call into the journal; a full disk costs the record, never the sweep."""
        record: Record = {"call": call, "time": int(time.time() * 1000), **values}
        with self._lock:
            if self._journal is None:
                return
            try:
                self._journal.append(record)
            except OSError as error:
                log.warning("tracking loses a record (%s): %s", call, error)
                return
            self._remember(record)

    def _unlogged(self, trial_id: str, series: Series) -> dict[str, list[tuple[int, float]]]:
        """The steps and values of series that are not on record as they are."""
        steps = {name: sorted(values.items()) for name, values in series.items()}
        return {name: values for name, values in steps.items() if self._series.get((trial_id, name)) != values}

    def _remember(self, record: Record) -> None:
        """Note up to which step each metric of a trial is on record, and with which tags."""
        trial_id = record.get("trial", SWEEP_RUN)
        if record["call"] == "start":
            self._begun.add(trial_id)
        if record["call"] == "finish" and trial_id in self._begun:
            self._finished.add(trial_id)
        self._tags |= {(trial_id, name): value for name, value in record.get("tags", {}).items()}
        for name, values in record.get("series", {}).items():
            self._series[trial_id, name] = [(step, value) for step, value in values]
        if record["call"] not in ("log", "finish"):
            return
        step = record["step"]
        self._steps[trial_id] = max(step, self._steps.get(trial_id, 0))
        for name, value in record["metrics"].items():
            self._last[trial_id, name] = (step, value)


def _checks(failed: Mapping[str, str]) -> str | None:
    """The tag of failed checks; None where none failed."""
    return json.dumps({name: said[:MAX_SAID] for name, said in failed.items()}) if failed else None


def _inputs(provenance: Mapping[str, str]) -> list[dict[str, str]]:
    """Data and encoder as MLflow's inputs of a run."""
    named = (("data", "data_source", "meta-training and attack"), ("encoder", "encoder_name", "encoder"))
    return [
        {
            "name": Path(provenance[name]).name,
            "digest": provenance[digest],
            "source": provenance[name],
            "context": context,
        }
        for digest, name, context in named
        if provenance.get(digest) and provenance.get(name)
    ]


def _sweep_id(path: Path) -> str:
    """The sweep's own id, drawn once; it stays with the folder."""
    known = path.read_text(errors="replace").strip() if path.exists() else ""
    if not (known.isascii() and known.isalnum()):  # it stands in queries; an empty one would be everybody's
        temporary = path.with_suffix(".new")
        write_bytes(temporary, uuid.uuid4().hex.encode(), sync=True)
        move(temporary, path)
        return path.read_text()
    return known


def within(connect: Callable[[], None], uri: str) -> None:
    """Connect within a time limit; a server that takes the connection and then does not answer counts as away.

    Raises:
        UsageError: as `connect` raises it.
        RunError: when the server fails or does not answer in time.
    """
    seconds = ANSWER_TIMEOUT_SECONDS if uri.startswith("http") else SCHEMA_TIMEOUT_SECONDS
    failure: list[BaseException] = []

    def attempt() -> None:
        try:
            connect()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=attempt, name="sdm-ray-tracking-connect", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise unreachable(uri, f"nothing within {seconds:g} s")
    if not failure:
        return
    if isinstance(failure[0], UsageError):
        raise failure[0]
    words = " ".join(str(failure[0]).split())[:200]
    raise refused(uri, words) if is_refusal(words) else unreachable(uri, words)


def _page(sink: MlflowSink) -> str:
    """The comparison of the sweep's trials, or a run without any; their list, where none began or they are too many."""
    runs, lone = sink.trial_runs(), sink.lone_run()
    if lone is not None:
        return f"#/experiments/{sink.experiment_id}/runs/{lone}"
    if 0 < len(runs) <= MAX_COMPARED_RUNS:
        lists = (json.dumps(values, separators=(",", ":")) for values in (runs, [sink.experiment_id]))
        return "#/compare-runs?runs={}&experiments={}".format(*map(quote, lists))
    query = f"tags.`{SWEEP_TAG}` = '{sink.sweep_id}' and tags.`{TRIAL_TAG}` != '{SWEEP_RUN}'"
    return f"#/experiments/{sink.experiment_id}/runs?searchFilter={quote(query, safe='')}&compareRunsMode=CHART"
