"""Repair of a sweep's MLflow database: a damaged one is moved aside, an old schema is upgraded; nothing is deleted."""

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
"""Part of MLflow's message for a database that an earlier version created."""
UPGRADE_SECONDS = 300


def is_own(file: Path, sweep_dir: Path) -> bool:
    """Whether a database is at the default path of a sweep: in its folder, or beside it."""
    return file.parent in (sweep_dir.absolute(), sweep_dir.absolute().parent)


def move_damaged(file: Path) -> Path | None:
    """Move a damaged database file aside, so that a new one is created; its new path, or None if the file is sound.

    Raises:
        RunError: if it cannot be moved.
    """
    damage = damage_of(file, lambda database: _lack(database, file))
    if damage is None:
        return None
    aside = set_database_aside(file)
    log.warning("%s is damaged (%s): it lies in %s, and a new one is made", file, damage, aside.name)
    return aside


def _lack(database: sqlite3.Connection, file: Path) -> str | None:
    """What an open database lacks; None if it is complete."""
    size = file.stat().st_size
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    if not tables:
        return "it holds no table"
    return f"it was cut to {size} bytes" if size < pages * page_bytes else None


def upgrade(file: Path) -> None:
    """Upgrade a database of an earlier MLflow; a copy of the old file is kept beside it.

    Raises:
        RunError: if MLflow cannot upgrade it.
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
