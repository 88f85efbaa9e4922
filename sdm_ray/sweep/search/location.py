"""Folder and default database of a sweep, and checks of names and addresses before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

from sdm_ray.config import SweepSettings
from sdm_ray.core.errors import Faults, UsageError
from sdm_ray.core.files import is_file, user_path

SETTINGS = "sweep.yaml"
"""File in a sweep's folder with its settings."""
OWN_FILE = "optuna.db"
"""Default Optuna storage, in the sweep's folder."""
MAX_NAME_BYTES, MAX_PART_BYTES = 200, 255
"""Limits in bytes: for a sweep's name, to which `--fork` and temporary files append; for a folder's name on common file
systems."""
MAX_EXPERIMENT_LENGTH = 500
"""Maximum length of an experiment's name in MLflow."""
MAX_THREADS = 1024
SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "mock")
"""URI schemes of pyarrow's file systems."""
_IN_MEMORY = re.compile(r"sqlite(\+\w+)?:(/{0,3}$|/*\?|///:memory:|.*mode=memory)")
_MISREAD = re.compile(r"[?#]|%[0-9A-Fa-f]{2}")
"""Matches characters in a file's path that databases interpret as part of the URL's syntax."""


def sweep_folder(settings: SweepSettings) -> Path:
    """Folder of a sweep; a leading `~` is expanded to a home folder.

    Raises:
        UsageError: if that home folder does not exist.
    """
    return user_path(settings.output_dir, "output_dir") / settings.name


def own_storage(folder: Path) -> str:
    """URL of the default Optuna storage; braces are doubled, because Optuna applies `str.format` to it."""
    return f"sqlite:///{folder.absolute() / OWN_FILE}".replace("{", "{{").replace("}", "}}")


def check_location(settings: SweepSettings) -> None:
    """Reject unusable names and addresses, before a folder is created or a heavy package is imported.

    Name and folder of a sweep that has already begun are not checked.

    Raises:
        UsageError: with the setting, its value and the fix.
    """
    faults = Faults()
    if not _has_begun(settings):
        faults.check(_check_name, settings.name)
        faults.check(_check_folder, settings)
    faults.check(_check_storage, settings.storage)
    faults.check(_check_storage_path, settings.storage_path)
    experiment = settings.tracking.experiment
    if experiment is not None and not (experiment.strip() and len(experiment) <= MAX_EXPERIMENT_LENGTH):
        faults.add(
            f"tracking.experiment is {_short(experiment)}, and MLflow takes names of 1 to {MAX_EXPERIMENT_LENGTH} "
            "characters; name the experiment, or leave it out for the default"
        )
    threads = settings.trial.runtime.num_threads
    if threads > MAX_THREADS:
        faults.add(f"trial.runtime.num_threads is {threads}, and at most {MAX_THREADS} can be started; lower it")
    faults.refuse()


def _has_begun(settings: SweepSettings) -> bool:
    try:
        return is_file(sweep_folder(settings) / SETTINGS)
    except UsageError:
        return False


def _check_name(name: str) -> None:
    length = len(name.encode(errors="replace"))
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or length > MAX_NAME_BYTES:
        raise UsageError(
            f"name is {_short(name)}, and must be the name of one folder in output_dir: no slash, neither empty nor "
            f"dots alone, at most {MAX_NAME_BYTES} bytes (this has {length})"
        )


def _check_folder(settings: SweepSettings) -> None:
    above = user_path(settings.output_dir, "output_dir").absolute()
    long = [part for part in above.parts if len(part.encode(errors="replace")) > MAX_PART_BYTES]
    if long:
        raise UsageError(
            f"output_dir holds the folder name {_short(long[0])}, longer than {MAX_PART_BYTES} bytes; shorten it"
        )
    found = _MISREAD.search(str(above / settings.name))
    by_default = ["storage"] if settings.storage is None and found and found[0] != "#" else []  # Optuna accepts `#`
    by_default += ["tracking.uri"] if settings.tracking.enabled and settings.tracking.uri is None else []
    if found and by_default:
        raise UsageError(
            f"the sweep's folder {above / settings.name} holds {found[0]!r}, which Optuna and MLflow misread in the "
            f"addresses of their databases there; choose another output_dir or name, or set {' and '.join(by_default)}"
        )


def _check_storage(storage: str | None) -> None:
    if storage is None:
        return
    if _IN_MEMORY.match(storage):
        raise UsageError(
            f"storage is {storage!r}, which is in memory and lost when the sweep ends or is interrupted; leave it out "
            "for a file in the sweep's folder, or write sqlite:////PATH/optuna.db"
        )
    if "://" not in storage:
        raise UsageError(
            f"storage is {_short(storage)}, and must be an address: sqlite:////PATH/optuna.db, journal:///PATH/FILE or "
            "that of a database server"
        )


def _check_storage_path(uri: str | None) -> None:
    if uri is None:
        return
    scheme, separator, _ = uri.partition("://")
    if (separator and scheme not in SCHEMES) or not (separator or uri.startswith("/")):
        raise UsageError(
            f"storage_path is {_short(uri)}, and must be a folder that all nodes reach: file:///PATH, "
            "s3://BUCKET/PATH, gs://BUCKET/PATH or what else pyarrow opens"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
