"""Where runs go: a setting, the recorded place, MLflow's environment variables, or a database beside the sweeps.

MLflow itself reads some variables wherever its client is used: `MLFLOW_TRACKING_TOKEN`, `MLFLOW_TRACKING_USERNAME` and
`MLFLOW_TRACKING_PASSWORD`, certificates, timeouts.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdm_ray.config import TrackingSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import move, write_bytes, write_text
from sdm_ray.tracking.address import at_home, masked, sqlite_file, sqlite_uri, sweep_id_file

URI, EXPERIMENT, CONTEXT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_CONTEXT"
"""MLflow's environment variables. The last one holds tags for every run, as a JSON object."""
DEFAULT_EXPERIMENT = "sdm-ray"
DATABASE = "mlflow.db"
FILE = "place.json"
"""Record in the sweep's `tracking/` of where its runs are."""
BEGAN = "where it began"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the runs of a sweep or a training go."""

    uri: str
    uri_from: str
    """What determined the URI."""
    experiment: str
    experiment_from: str
    tags: Mapping[str, str]
    """Tags of every run."""

    def __str__(self) -> str:
        return (
            f"tracking in MLflow at {masked(self.uri)} ({self.uri_from}), "
            f"experiment {self.experiment} ({self.experiment_from})"
        )

    def apply(self, settings: TrackingSettings) -> TrackingSettings:
        """Settings that name this place."""
        return settings.model_copy(update={"uri": self.uri, "experiment": self.experiment, "tags": dict(self.tags)})


def choose_place(
    settings: TrackingSettings, sweep_dir: Path, *, own: bool = False, environ: Mapping[str, str] = os.environ
) -> Place:
    """Choose where the runs of the sweep in a folder go: setting, then the recorded place, environment, default.

    Args:
        settings: tracking settings.
        sweep_dir: the sweep's folder.
        own: make the default a database in that folder instead of the one that neighbouring sweeps share.
        environ: the environment.

    Raises:
        UsageError: if the variable with tags is not a JSON object, or the sweep's record of the place is damaged.
    """
    uri, experiment = _begun(sweep_dir)
    variable = environ.get(URI)
    if uri is not None and variable and without_password(variable) == uri:
        uri = variable
    shared = sqlite_uri((sweep_dir if own else sweep_dir.absolute().parent) / DATABASE)
    places = ((settings.uri, "tracking.uri"), (uri, BEGAN), (variable, URI), (shared, "the default"))
    names = (
        (settings.experiment, "tracking.experiment"),
        (experiment, BEGAN),
        (environ.get(EXPERIMENT), EXPERIMENT),
        (DEFAULT_EXPERIMENT, "the default"),
    )
    (chosen, uri_from), (name, experiment_from) = (
        next((value, source) for value, source in found if value) for found in (places, names)
    )
    tags = context_tags(environ) | settings.tags
    return Place(
        uri=at_home(chosen, uri_from), uri_from=uri_from, experiment=name, experiment_from=experiment_from, tags=tags
    )


def place_of(sweep_dir: Path, settings: TrackingSettings | None = None) -> str:
    """Tracking URI of the sweep in a folder."""
    return choose_place(settings or TrackingSettings(), sweep_dir).uri


def keep_place(sweep_dir: Path, uri: str, experiment: str) -> None:
    """Record where a sweep's runs are, without a password; paths of files beside the sweep are relative to it.

    Raises:
        OSError: if it cannot be written.
    """
    file = sqlite_file(uri)
    where = {"uri": without_password(uri)}
    if file is not None and file.parent in (sweep_dir.absolute(), sweep_dir.absolute().parent):
        where = {"file": os.path.relpath(file, sweep_dir.absolute())}
    folder = str(sweep_dir.resolve())  # identifies copies
    write_text(_file(sweep_dir), json.dumps({**where, "experiment": experiment, "folder": folder}))


def sweep_id(sweep_dir: Path) -> str:
    """Id of the sweep, drawn once and stored in its folder.

    Raises:
        OSError: if it cannot be written.
    """
    path = sweep_id_file(sweep_dir)
    known = path.read_text(errors="replace").strip() if path.exists() else ""
    if not (known.isascii() and known.isalnum()):  # used in queries; an empty one matches all
        temporary = path.with_suffix(".new")
        write_bytes(temporary, uuid.uuid4().hex.encode(), sync=True)
        move(temporary, path)
        return path.read_text()
    return known


def context_tags(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Tags from the environment for every run.

    Raises:
        UsageError: if they are not a JSON object.
    """
    text = environ.get(CONTEXT)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(
            f'{CONTEXT} is {text[:80]!r}, which is no JSON object of tags; write {{"name": "value"}}, or unset it'
        )
    return {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}


def without_password(uri: str) -> str:
    """URI without its password."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1@", uri)


def _begun(sweep_dir: Path) -> tuple[str | None, str | None]:
    """URI and experiment of the runs that a sweep already has; before `place.json`, each sweep had its own database."""
    path = _file(sweep_dir)
    if not path.is_file():
        own = sweep_dir / DATABASE
        if own.is_file() or sweep_id_file(sweep_dir).is_file():
            return sqlite_uri(own), DEFAULT_EXPERIMENT
        return None, None
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        uri = kept["uri"] if "uri" in kept else sqlite_uri(Path(os.path.normpath(sweep_dir.absolute() / kept["file"])))
        return str(uri), str(kept["experiment"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it and set tracking.uri to where the "
            "sweep's runs are"
        ) from None


def _file(sweep_dir: Path) -> Path:
    return sweep_id_file(sweep_dir).with_name(FILE)
