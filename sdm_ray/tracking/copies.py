"""Handling of copied or moved sweep folders, so that a copy never overwrites the runs of the original."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdm_ray.core.errors import UsageError
from sdm_ray.tracking.address import sqlite_file, sweep_id_file
from sdm_ray.tracking.place import FILE

ARTIFACTS = "mlartifacts"
"""Folder of artifacts beside the database."""
_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's database, by table, that hold artifact locations."""


def settle_copy(sweep_dir: Path, uri: str, experiment: str) -> None:
    """Refuse to track a copy in the runs of its original; after a move, update the recorded artifact locations.

    Raises:
        UsageError: naming both folders.
    """
    here = sweep_dir.resolve()
    original = _original(sweep_dir)
    if original is not None:
        raise _copied(here, original, sweep_dir)
    file = sqlite_file(uri)
    if file is None or not file.is_file() or file.parent.resolve() not in (here, here.parent):
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(file)) as database:  # MLflow reports the fault
        found = database.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchone()
        parts = urlsplit(found[0] if found and found[0] else "")
        artifacts = Path(unquote(parts.path))
        if parts.scheme != "file" or artifacts.name != ARTIFACTS or artifacts.parent.resolve() == file.parent.resolve():
            return
        if (artifacts.parent / file.name).is_file():
            raise _copied(file.parent.resolve(), artifacts.parent, sweep_dir)
        _move(database, str(found[0]), (file.parent / ARTIFACTS).as_uri())


def _original(sweep_dir: Path) -> Path | None:
    """Folder that this one was copied from, if it still exists."""
    try:
        folder = Path(json.loads((sweep_dir / "tracking" / FILE).read_text(encoding="utf-8"))["folder"])
        same_id = sweep_id_file(folder).read_text() == sweep_id_file(sweep_dir).read_text()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if same_id and not folder.samefile(sweep_dir) else None


def _copied(here: Path, original: Path, sweep_dir: Path) -> UsageError:
    kept = [sweep_dir / "tracking", *(sweep_dir / name for name in ("mlflow.db", ARTIFACTS))]
    if here != sweep_dir.resolve():
        kept += [here / "mlflow.db", here / ARTIFACTS]
    listed = " and ".join(str(path) for path in kept if path.exists())
    return UsageError(
        f"{here} is a copy of {original}, whose runs in MLflow it would write over; remove {listed}, so that it gets "
        "runs of its own, or switch tracking off with tracking.enabled=false"
    )


def _move(database: sqlite3.Connection, before: str, now: str) -> None:
    """Replace a folder prefix in every recorded artifact location."""
    present = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    with database:
        for table, columns in _COLUMNS.items():
            known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")} if table in present else set()
            for column in known.intersection(columns):
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR "
                    f"substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, before + "/"),
                )
