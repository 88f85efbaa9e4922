"""Detect damaged sqlite files, and move them aside with their journals."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from sdm_ray.core.errors import RunError
from sdm_ray.core.files import move, set_aside

COMPANIONS = ("-journal", "-wal", "-shm")
"""Suffixes of sqlite's companion files. They are moved too, because sqlite would apply them to a new database."""


def damage_of(file: Path, look: Callable[[sqlite3.Connection], str | None]) -> str | None:
    """Describe the damage of a database; None if it is sound, absent or locked.

    Args:
        file: the database.
        look: describes what the database lacks; None if it is complete. If it queries a table or column that does not
            exist, that counts as damage too.
    """
    if not file.exists():
        return None
    try:
        if file.stat().st_size == 0:
            return "it is empty"
        with closing(sqlite3.connect(file, timeout=1.0)) as database:
            return look(database)
    except sqlite3.DatabaseError as error:
        sound = isinstance(error, sqlite3.OperationalError) and "no such" not in str(error)
        return None if sound else str(error)  # a locked or unreadable file is not damaged


def set_database_aside(file: Path) -> Path:
    """Rename a damaged database and its journals; returns its new path.

    Raises:
        RunError: if they cannot be renamed.
    """
    aside = set_aside(file)
    for suffix in COMPANIONS:
        beside = file.with_name(file.name + suffix)
        try:
            with suppress(FileNotFoundError):
                move(beside, aside.with_name(aside.name + suffix))
        except OSError as error:
            raise RunError(f"cannot move {beside} aside: {error.strerror or error}; remove it") from None
    return aside
