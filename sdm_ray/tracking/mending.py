"""A sweep's MLflow database that is damaged or of an earlier MLflow: moved aside or brought up to date, never lost."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

from sdm_ray.core.databases import damage_of, set_database_aside
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import copy
from sdm_ray.tracking.address import sqlite_uri

log = logging.getLogger(__name__)

OLD_SCHEMA = "out-of-date database schema"
"""What MLflow says of a database that an earlier version made."""
UPGRADE_SECONDS = 300


def is_own(file: Path, sweep_dir: Path) -> bool:
    """Whether a database is where sweeps keep theirs: in the folder, or beside it."""
    return file.parent in (sweep_dir.absolute(), sweep_dir.absolute().parent)


def move_damaged(file: Path) -> Path | None:
    """Move a file that is no whole database aside, so that a new one is made; its new path, None where it is sound.

    Raises:
        RunError: when it cannot be moved.
    """
    damage = damage_of(file, lambda database: _lack(database, file))
    if damage is None:
        return None
    aside = set_database_aside(file)
    log.warning("%s is damaged (%s): it lies in %s, and a new one is made", file, damage, aside.name)
    return aside


def _lack(database: sqlite3.Connection, file: Path) -> str | None:
    """What an open database lacks; None where it is whole."""
    size = file.stat().st_size
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    if not tables:
        return "it holds no table"
    return f"it was cut to {size} bytes" if size < pages * page_bytes else None


def upgrade(file: Path) -> None:
    """Bring a database of an earlier MLflow up to date; a copy of it as it was stays beside it.

    Raises:
        RunError: when MLflow cannot.
    """
    number = 1
    while (kept := file.with_name(f"{file.name}.before-upgrade-{number}")).exists():
        number += 1
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", sqlite_uri(file)]
    try:
        copy(file, kept)
        done = subprocess.run(command, capture_output=True, text=True, timeout=UPGRADE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{file} is of an earlier MLflow and cannot be brought up to date: {error}") from None
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        raise RunError(
            f"{file} is of an earlier MLflow, and `mlflow db upgrade` fails: {words}; remove it, and every trial is "
            "recorded again"
        )
    log.warning("%s was of an earlier MLflow and is brought up to date; as it was it lies in %s", file, kept.name)
