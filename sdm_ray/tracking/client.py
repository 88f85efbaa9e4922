"""MLflow's client: lazy, quiet import; creates a missing sqlite schema or experiment."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import move, remove
from sdm_ray.tracking.address import sqlite_file, sqlite_uri

_QUIET = {
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # a page of traceback for each error that it then raises
    "alembic": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,
}
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per run, from the delivery thread
}
"""Environment defaults of this process: one retry per request, since the outbox retries too, and no telemetry."""


def prepare_mlflow() -> None:
    """Import MLflow without its log output.

    Raises:
        UsageError: if it is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow.tracking  # noqa: F401
    except ImportError:
        raise UsageError("tracking needs the package mlflow; install it or set tracking.enabled=false") from None
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)


def new_client(uri: str) -> Any:
    """Create MLflow's client, and the schema of a new sqlite file."""
    prepare_mlflow()
    from mlflow import MlflowClient

    file = sqlite_file(uri)
    if file is not None and not file.exists():
        create_database(file)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def create_database(file: Path) -> None:
    """Create the schema in a temporary file and link it into place, so that a kill cannot leave a partial schema."""
    from mlflow import MlflowClient

    # A new name for each attempt: MLflow keeps its connections by name, and those to a removed file fail for ever.
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    uri = sqlite_uri(temporary)
    try:
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments()
        try:
            file.hardlink_to(temporary)
        except FileExistsError:  # another sweep on the same file was faster
            pass
        except OSError:  # file system without hard links
            move(temporary, file)
    finally:
        remove(temporary)


def find_or_create_experiment(client: Any, name: str, artifact_location: str | None) -> str:
    """Id of the experiment with this name.

    Raises:
        UsageError: if it was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage != "active":
        raise UsageError(
            f"tracking.experiment: the MLflow experiment {name!r} was deleted; restore it or choose another name"
        )
    return str(experiment.experiment_id)
