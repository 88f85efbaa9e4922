"""MLflow's tables, made by its migrations once a process and copied for every further sqlite file.

MLflow makes a new database by all its migrations in turn, about a second of computing each time; over a hundred tests
make one. What is copied is what the migrations gave.
"""

from __future__ import annotations

import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy


@cache
def install() -> None:
    """Have MLflow copy its tables from now on; a second call does nothing."""
    from mlflow.store.db import utils

    migrate = utils._initialize_tables

    @cache
    def tables() -> sqlite3.Connection:
        """A database in memory that MLflow's own migrations have made."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "mlflow.db")
            engine = sqlalchemy.create_engine(f"sqlite:///{file}")
            migrate(engine)
            engine.dispose()
            made = sqlite3.connect(":memory:", check_same_thread=False)
            with sqlite3.connect(file) as source:
                source.backup(made)
            source.close()
        return made

    def copy(engine: Any) -> None:
        """Copy the tables to an empty file; anything else is migrated as MLflow does it."""
        if engine.dialect.name != "sqlite" or not engine.url.database or sqlalchemy.inspect(engine).get_table_names():
            migrate(engine)
            return
        with sqlite3.connect(engine.url.database) as target:
            tables().backup(target)
        target.close()

    utils._initialize_tables = copy
