"""Memory-bounded reading of Parquet files: a file of a few kilobytes can contain the same text a billion times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm_ray.core.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

SHARE = 0.5
"""Largest share of this machine's memory for a table."""


def read_parquet(path: Path, columns: Sequence[str] | None = None, *, max_bytes: int | None = None) -> pa.Table:
    """Read a Parquet file after checking that its contents fit in memory.

    Args:
        path: path of the file.
        columns: columns to read; None reads all.
        max_bytes: most bytes for the table; None is half of this machine's memory.

    Raises:
        UsageError: if the table would need more.
        pyarrow.ArrowException: for a damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limit = memory_bytes() if max_bytes is None else max_bytes
    with pq.ParquetFile(path) as file:
        meta, schema = file.metadata, file.schema_arrow
        wanted = schema.names if columns is None else list(columns)
        stored = _stored(meta, wanted)
        plain = 8 * meta.num_rows * len(wanted)
        _check(path, meta.num_rows, max(plain, sum(stored.values())), limit)
        texts = [name for name in wanted if _is_text(schema.field(name).type)]
        repeated = [name for name in texts if meta.num_rows * stored[name] > limit]
        if not repeated:
            return file.read(columns=wanted)
    with pq.ParquetFile(path, read_dictionary=repeated) as file:
        table = file.read(columns=wanted)
    _check(path, table.num_rows, plain + sum(_expanded(table.column(name)) for name in repeated), limit)
    for name in repeated:
        index = table.schema.get_field_index(name)
        kind = pa.large_string() if pa.types.is_large_string(schema.field(name).type) else schema.field(name).type
        table = table.set_column(index, schema.field(name), table.column(name).cast(kind))
    return table.replace_schema_metadata(schema.metadata)


def memory_bytes() -> int:
    """Most bytes of this machine's memory for a table."""
    return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _stored(meta: Any, names: Sequence[str]) -> dict[str, int]:
    """Uncompressed size of columns in the file, in bytes."""
    sizes = dict.fromkeys(names, 0)
    for group in range(meta.num_row_groups):
        for index in range(meta.num_columns):
            column = meta.row_group(group).column(index)
            path = column.path_in_schema
            name = path if path in sizes else path.partition(".")[0]  # nested column
            if name in sizes:
                sizes[name] += column.total_uncompressed_size
    return sizes


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _expanded(column: pa.ChunkedArray) -> int:
    """Size of a dictionary-coded text column when expanded, in bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            total += pc.sum(pc.binary_length(chunk.dictionary).cast(pa.int64()).take(chunk.indices)).as_py() or 0
    return total


def _check(path: Path, num_rows: int, size: int, limit: int) -> None:
    if size > limit:
        raise UsageError(
            f"{path} would take at least {size / 1e9:.1f} GB in memory ({num_rows} rows), and {limit / 1e9:.1f} GB are "
            "the bound; if it is what you mean to read, split it or leave columns out"
        )
