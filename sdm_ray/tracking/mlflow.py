"""Tracking with MLflow: a parent run for the sweep, a child run for each trial."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from sdm_ray.config import TrackingSettings
from sdm_ray.core.errors import RunError
from sdm_ray.core.result import TrialResult
from sdm_ray.tracking.address import check_address, masked, sqlite_file
from sdm_ray.tracking.answer import within
from sdm_ray.tracking.client import prepare_mlflow
from sdm_ray.tracking.copies import ARTIFACTS as ARTIFACTS_FOLDER
from sdm_ray.tracking.copies import settle_copy
from sdm_ray.tracking.ending import RUN_STATUS, artifacts, inputs, result_tags
from sdm_ray.tracking.environment import environment_tags
from sdm_ray.tracking.mending import OLD_SCHEMA, is_own, move_damaged, upgrade
from sdm_ray.tracking.naming import MAX_TAG, finite_metrics, flat_params, legal_key, readable, tag_values
from sdm_ray.tracking.outbox import SWEEP_RUN, Delivery, Journal, Record
from sdm_ray.tracking.pages import run_link, sweep_page, ui_hint
from sdm_ray.tracking.place import DEFAULT_EXPERIMENT, keep_place, place_of, sweep_id
from sdm_ray.tracking.recorded import Recorded
from sdm_ray.tracking.series import kept_tags, split
from sdm_ray.tracking.sink import MlflowSink

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_SECONDS, AWAY_TIMEOUT_SECONDS = 45.0, 3.0
"""Longest wait for the last records at the end of a sweep: for a server that answers, and for one that does not."""
HINT_TIMEOUT_SECONDS = 20.0
DESCRIPTION = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run, in Markdown."""


def _never_raising(method: Callable[..., None]) -> Callable[..., None]:
    """Decorate a tracker's method: its exceptions are logged and do not stop the sweep."""

    @functools.wraps(method)
    def call(self: MlflowTracker, *args: Any, **options: Any) -> None:
        try:
            method(self, *args, **options)
        except Exception:
            log.exception("tracking loses a call (%s) by a fault of sdm-ray; the sweep goes on", method.__name__)

    return call


class MlflowTracker:
    """See `Tracker`. Calls are written to a journal in the sweep's folder; a separate thread delivers them.

    Args:
        settings: tracking settings.
        sweep_dir: the sweep's folder; the journal is in its subfolder `tracking/`.
        fetch: copies the folder of an ended trial to this machine.
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
        self._recorded = Recorded()
        self._objectives: Collection[str] = ()
        self._environment: dict[str, str] = {}
        self._is_closed = self._is_full = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the connection: a copy in another process starts unconnected."""
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
        """Check that the server answers; the tables of a new sqlite file are created by the first delivery.

        Raises:
            UsageError: if MLflow is not installed, or the experiment cannot be used.
            RunError: if the server does not answer.
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
        if fresh := self._recorded.later(trial_id, single, step):
            self._append("log", trial=trial_id, step=int(step), metrics=fresh)

    @_never_raising
    def log_sweep(self, metrics: dict[str, float], step: int) -> None:
        """See `Tracker.log_sweep`."""
        if fresh := self._recorded.changed(SWEEP_RUN, finite_metrics(metrics), step):
            self._append("log", trial=SWEEP_RUN, step=int(step), metrics=fresh)

    @_never_raising
    def annotate(self, tags: Mapping[str, Mapping[str, Any]], *, description: str | None = None) -> None:
        """See `Tracker.annotate`."""
        wanted = {trial_id: tag_values(values) for trial_id, values in tags.items()}
        if description is not None:
            wanted.setdefault(SWEEP_RUN, {})[DESCRIPTION] = readable(description, MAX_TAG)
        for trial_id, values in wanted.items():
            fresh = self._recorded.new_tags(trial_id, values)
            if fresh and trial_id in self._recorded.begun:
                self._append("tags", trial=trial_id, tags=fresh)

    @_never_raising
    def finish_trial(self, result: TrialResult) -> None:
        """See `Tracker.finish_trial`."""
        metrics = finite_metrics(result.metrics)
        single, series = split(metrics, self._objectives)
        first = {name: single[name] for name in self._objectives if name in single}  # MLflow shows them in this order
        step, fresh, alone = self._recorded.final(result.trial_id, first | single)
        self._append(
            "finish",
            trial=result.trial_id,
            step=step,
            metrics=fresh,
            series=self._recorded.unlogged(result.trial_id, alone | series),
            tags=result_tags(result, kept_tags(metrics, single)),
            artifacts=artifacts(result, with_model=self._settings.log_models),
            inputs=inputs(result.provenance),
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
        delivered = self._delivery.close(CLOSE_TIMEOUT_SECONDS, AWAY_TIMEOUT_SECONDS)
        if not delivered and self.error is None and (num_pending := self._journal.count_pending()):
            log.warning(
                "%d tracking records wait in %s for %s; `sdm-ray sweep --resume` delivers them",
                num_pending,
                self._journal.path,
                masked(self._uri),
            )
        self._journal, self._is_closed = None, True

    def ui_hint(self) -> str:
        """Command that opens MLflow's interface, if one is needed, and the page that compares the trials.

        Waits a few seconds for a new database whose schema is still being created.
        """
        page = "#/experiments"
        if self._sink is not None and self._sink.wait_connected(0.0 if self._is_closed else HINT_TIMEOUT_SECONDS):
            page = sweep_page(self._sink)
        return ui_hint(self._uri, page)

    def is_recorded(self, trial_id: str) -> bool:
        """See `Tracker.is_recorded`."""
        return trial_id in self._recorded.finished

    def run_link(self, trial_id: str) -> dict[str, str]:
        """See `Tracker.run_link`."""
        run_id = None if self._sink is None else self._sink.run_id(trial_id)
        if self._sink is None or run_id is None:
            return {}
        return run_link(self._uri, self._sink.experiment_id, run_id)

    def _open(self) -> tuple[Journal, MlflowSink]:
        folder = self._sweep_dir / "tracking"
        try:
            settle_copy(self._sweep_dir, self._uri, self._experiment)
            self._journal = Journal(folder)
            keep_place(self._sweep_dir, self._uri, self._experiment)
            own_id = sweep_id(self._sweep_dir)
        except OSError as error:
            raise RunError(f"tracking cannot write to {folder}: {error.strerror or error}; free space there") from None
        file = sqlite_file(self._uri)
        artifacts = (file.parent / ARTIFACTS_FOLDER).as_uri() if file is not None else None
        self._sink = MlflowSink(
            self._uri,
            self._experiment,
            artifacts,
            own_id,
            system_metrics=self._settings.system_metrics,
            fetch=self._fetch,
        )
        for record in self._journal.records():
            self._recorded.remember(record)
        return self._journal, self._sink

    def _start(self, trial_id: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        self._append("start", trial=trial_id, name=name, params=flat_params(params), tags=tag_values(tags))

    def _append(self, call: str, **values: Any) -> None:
        """Append a call to the journal; if the disk is full, the record is lost but the sweep goes on."""
        record: Record = {"call": call, "time": int(time.time() * 1000), **values}
        with self._lock:
            if self._journal is None:
                return
            try:
                self._journal.append(record)
            except OSError as error:
                if not self._is_full:
                    log.warning(
                        "tracking cannot keep records in %s: %s; --resume records again how trials ended",
                        self._journal.path,
                        error.strerror or error,
                    )
                self._is_full = True
                return
            self._is_full = False
            self._recorded.remember(record)
