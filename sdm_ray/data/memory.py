"""Write in-memory data to a file that every process of a sweep can read."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from sdm_ray.config.trial import RuntimeSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import move, remove
from sdm_ray.data.readers import files_digest

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def dataset_source(data: datasets.Dataset | datasets.DatasetDict | pa.Table, folder: Path | None = None) -> str:
    """Write an in-memory data set to a file, and return the value of `data.source` for it.

    The file is named by its content hash, so the same rows are stored once and a sweep over them can resume. Class
    names (`ClassLabel`) are kept.

    Args:
        data: a `datasets.Dataset`, a `DatasetDict` (its splits are concatenated) or a pyarrow table.
        folder: target folder; None is `data` in the cache folder. Nodes of a cluster must be able to read it.

    Returns:
        Path of a .parquet file.

    Raises:
        UsageError: for data of another type, or without rows.
        RunError: if the file cannot be written.
    """
    table = _table(data)
    if not table.num_rows:
        raise UsageError("the data set holds no rows")
    folder = (folder or RuntimeSettings().cache_folder() / "data").expanduser().resolve()
    temporary = folder / f".{uuid.uuid4().hex}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary)
        path = folder / f"{files_digest([temporary])[:16]}.parquet"
        move(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write data to {folder}: {error.strerror or error}; name another folder") from None
    finally:
        remove(temporary)
    return str(path)


def _table(data: object) -> pa.Table:
    import pyarrow as pa

    if isinstance(data, pa.Table):
        return data
    if isinstance(data, dict):  # a DatasetDict is one
        tables = [_table(part) for part in data.values()]
        if not tables:
            raise UsageError("the data set holds no rows")
        if any(table.schema.metadata != tables[0].schema.metadata for table in tables):
            raise UsageError("the splits of the data set describe their columns in different ways; cast them alike")
        return pa.concat_tables(tables, promote_options="permissive")
    with_format = getattr(data, "with_format", None)
    features = getattr(data, "features", None)
    if with_format is None or features is None or not hasattr(data, "__len__"):
        raise UsageError(
            f"a data set in memory must be a datasets.Dataset, a DatasetDict or a pyarrow table, got "
            f"{type(data).__name__}"
        )
    table: pa.Table = with_format("arrow")[:]
    return table.replace_schema_metadata(features.arrow_schema.metadata)
