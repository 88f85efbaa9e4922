"""Damaged sqlite files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sdm_ray.core import databases
from sdm_ray.core.databases import COMPANIONS, damage_of, set_database_aside
from sdm_ray.core.errors import RunError


def named(database: sqlite3.Connection) -> str | None:
    return None if database.execute("SELECT count(*) FROM things").fetchone()[0] else "it holds nothing"


def test_damage_is_told_from_a_lock(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    assert damage_of(file, named) is None, "there is none"
    file.touch()
    assert damage_of(file, named) == "it is empty"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("CREATE TABLE others (a)")
        assert damage_of(file, named) == "no such table: things"
        database.execute("CREATE TABLE things (a)")
        assert damage_of(file, named) == "it holds nothing"
        database.execute("BEGIN EXCLUSIVE")
        assert damage_of(file, named) is None, "locked"
    file.write_bytes(b"no database" * 100)
    assert damage_of(file, named) == "file is not a database"


def test_what_belongs_to_a_file_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.db"
    for suffix in ("", *COMPANIONS[:2]):
        (tmp_path / f"a.db{suffix}").write_text(f"old{suffix}")
    aside = set_database_aside(file)
    assert aside == tmp_path / "a.db.damaged-1"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"a.db.damaged-1{suffix}": f"old{suffix}" for suffix in ("", *COMPANIONS[:2])
    }

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    file.write_text("old")
    monkeypatch.setattr(databases, "move", refuse)
    with pytest.raises(RunError, match=r"a\.db-journal aside: Permission denied; remove it"):
        set_database_aside(file)
