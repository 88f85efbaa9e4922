"""Parquet is read within bounds, and as it is."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdm_ray.core import parquet
from sdm_ray.core.errors import UsageError
from sdm_ray.core.parquet import read_parquet


def test_a_text_that_is_repeated_often_is_refused(tmp_path: Path) -> None:
    """100 kB thousands of times: a file of some kilobytes."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array(["x" * 100_000]))
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": texts}), path, store_schema=False)
    assert path.stat().st_size < 20_000
    with pytest.raises(UsageError, match=r"would take at least 5\.0 GB in memory \(50000 rows\), and 1\.0 GB are the"):
        read_parquet(path, max_bytes=10**9)


def test_many_rows_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zeros.parquet"
    pq.write_table(pa.table({"x": pa.nulls(1_000_000, pa.float64())}), path)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    with pytest.raises(UsageError, match="1000000 rows"):
        read_parquet(path, max_bytes=10**6)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
@pytest.mark.parametrize("limit", [10**9, 50_000])
def test_what_is_read_is_what_was_written(tmp_path: Path, kind: pa.DataType, limit: int) -> None:
    """At once, or as a dictionary first where texts might be repeated."""
    texts = pa.array(["a", None, "bb" * 20, "a"] * 100, kind)
    table = pa.table({"text": texts, "la.bel": pa.array([1, 2, 3, 4] * 100)}).replace_schema_metadata({"a": "b"})
    path = tmp_path / "table.parquet"
    pq.write_table(table, path)
    assert read_parquet(path, max_bytes=limit).select(["text", "la.bel"]).equals(table)
    assert read_parquet(path, ["la.bel"], max_bytes=limit).equals(table.select(["la.bel"]))
    parquet_metadata = read_parquet(path, max_bytes=limit).schema.metadata
    assert parquet_metadata == {b"a": b"b"}


def test_half_of_the_memory_is_the_bound() -> None:
    assert 10**8 < parquet.memory_bytes() < 10**14
