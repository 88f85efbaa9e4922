"""Artifacts of a tracked run: download its model and other files, and add later measurements."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import copy
from sdm_ray.core.types import Params
from sdm_ray.tracking.address import sqlite_file
from sdm_ray.tracking.copies import ARTIFACTS
from sdm_ray.tracking.ending import MODEL
from sdm_ray.tracking.naming import finite_metrics, tag_values
from sdm_ray.tracking.runs import TrackedRun, answer, connect
from sdm_ray.tracking.series import split


@contextmanager
def model_folder(run: TrackedRun) -> Iterator[Path]:
    """Folder of the model that a trial released: the trial's own folder, or a download of the run's artifact.

    Raises:
        UsageError: if the run has no model, either locally or among its artifacts.
        RunError: if the download fails.
    """
    if run.is_sweep:
        raise UsageError(
            f"run {run.run_id} is that of the sweep {run.name!r}, which has many models; name the run of a trial"
        )
    local = Path(run.tags.get("output_dir", "")) / MODEL
    if "output_dir" in run.tags and local.is_dir():
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="sdm-ray-") as folder:
        found = download(run, MODEL, Path(folder))
        if found is None or not found.is_dir() or not (found / "config.json").is_file():
            raise UsageError(
                f"run {run.run_id} ({run.name}) has no model: {local} is not on this machine, and none was uploaded; "
                "run the command where the sweep ran, or sweep with tracking.log_models=true"
            )
        yield found


def check_weights(run: TrackedRun, params: Params | None, folder: str | Path) -> None:
    """Check that weights match those of a tracked run before results are added to it.

    Args:
        run: the run.
        params: parameters of the exported model in the folder; None (not an export) is an error.
        folder: folder of the weights, for the error message.

    Raises:
        RunError: if they differ from the tracked ones, or are missing.
    """
    from sdm_ray.models.encoder import params_digest

    wanted = run.tags.get("provenance.weights")
    if params is None or (wanted is not None and params_digest(params) != wanted):
        raise RunError(
            f"the weights in {folder} are not those that run {run.run_id} ({run.name}) tracked; restore the folder, or "
            "use it without the run if that is meant"
        )


def download(run: TrackedRun, path: str, into: Path) -> Path | None:
    """Download an artifact of a run; None if it has no artifact at this path.

    Raises:
        UsageError: if its artifacts were in a folder that no longer exists, and are not beside the database either.
        RunError: if the server does not answer, or names a file outside the folder.
    """
    client = connect(run.uri)
    parent, _, name = path.rpartition("/")
    moved = _moved(client, run)
    if moved is not None:
        if not (moved / path).exists():
            return None
        found = Path(answer(run.uri, lambda: copy(moved / path, into / name)))
    else:
        listed = answer(run.uri, lambda: client.list_artifacts(run.run_id, parent or None))
        if not any(Path(file.path).name == name for file in listed):
            return None
        found = Path(answer(run.uri, lambda: client.download_artifacts(run.run_id, path, str(into))))
    root = into.resolve()
    for file in (found, *found.rglob("*")):
        if not file.resolve().is_relative_to(root):
            raise RunError(f"artifact {path!r} of run {run.run_id} leaves its folder ({file}); do not trust this run")
    return found


def _moved(client: Any, run: TrackedRun) -> Path | None:
    """Current folder of artifacts that were moved with their database; None if the recorded folder is valid."""
    file = sqlite_file(run.uri)
    parts = urlsplit(answer(run.uri, lambda: client.get_run(run.run_id)).info.artifact_uri)
    said = Path(unquote(parts.path))
    root = said.parent.parent  # created with the first artifact
    if file is None or parts.scheme not in ("", "file") or root.is_dir() or root.parent == file.parent:
        return None
    beside = file.parent / ARTIFACTS / run.run_id / said.name
    if beside.is_dir():
        return beside
    raise UsageError(
        f"the artifacts of run {run.run_id} ({run.name}) lie in {said}, says {file}, and that folder is gone; put "
        f"{ARTIFACTS} beside the database, or read the sweep's folder instead"
    )


def add_to_run(
    run: TrackedRun, *, metrics: Mapping[str, float], tags: Mapping[str, Any], files: Sequence[Path], folder: str
) -> None:
    """Add later measurements to a run that has ended.

    Args:
        run: the run.
        metrics: values by name; non-finite values and those that `split` does not log are left out.
        tags: additional tags.
        files: artifacts.
        folder: artifact folder for the files.

    Raises:
        RunError: if the server does not answer.
    """
    from mlflow.entities import Metric, RunTag
    from mlflow.utils.time import get_current_time_millis

    client, now = connect(run.uri), get_current_time_millis()
    single, series = split(finite_metrics(metrics))
    values = [Metric(name, value, now, 0) for name, value in single.items()]
    values += [Metric(name, value, now, n) for name, points in series.items() for n, value in points.items()]
    marks = [RunTag(name, value) for name, value in tag_values(tags).items()]

    def send() -> None:
        for file in files:
            client.log_artifact(run.run_id, str(file), folder)
        client.log_batch(run.run_id, metrics=values, tags=marks)

    answer(run.uri, send)
