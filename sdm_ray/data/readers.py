"""Read tables from local files with pyarrow."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import is_file, is_folder, user_path
from sdm_ray.core.hub import brief
from sdm_ray.core.parquet import read_parquet
from sdm_ray.core.suggest import did_you_mean

ClassNames = dict[str, list[str]]
"""Names of integer classes by column, for columns whose Hugging Face dataset gives them."""


class Source(NamedTuple):
    """The stored columns of a source."""

    table: pa.Table
    class_names: ClassNames


def data_files(source: str) -> list[Path] | None:
    """The data files of `source`, sorted; None if it looks like a hub id.

    A source is a path if it exists, starts with `.`, `/` or `~`, or ends like a data file.

    Raises:
        UsageError: for a path that does not exist, a folder without data, or an unsupported format.
    """
    path = user_path(source, "data.source")
    known = f"known formats: {', '.join(READERS)}"
    if is_folder(path):
        files = _in_folder(path)
        if not files:
            raise UsageError(f"data.source: folder {source} holds no data file ({known})")
        return files
    if is_file(path):
        if path.suffix.lower() not in READERS:
            raise UsageError(f"data.source: {source} has an unsupported format {path.suffix!r}; {known}")
        return [path]
    if path.suffix.lower() in READERS or path.suffix in _FOREIGN or source.startswith((".", "/", "~")):
        raise UsageError(f"data.source: file {source} does not exist")
    return None


def read_files(files: Sequence[Path], columns: dict[str, str]) -> Source:
    """Read columns from all files and concatenate them.

    Args:
        files: data files with these columns.
        columns: column name by setting (such as `text_column`).

    Raises:
        UsageError: for an unreadable file, a missing column, or columns whose types differ between files.
    """
    tables: list[pa.Table] = []
    class_names: ClassNames = {}
    for file in files:
        try:
            table = READERS[file.suffix.lower()](file, columns)
        except UsageError:
            raise
        except PermissionError:
            raise UsageError(f"data.source: {file} cannot be read: permission denied") from None
        except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
            kind = file.suffix.removeprefix(".")
            raise UsageError(f"data.source: {file} cannot be read as {kind}: {brief(error)}") from None
        add_class_names(class_names, _class_names_of_metadata(table.schema), columns, str(file))
        tables.append(table.replace_schema_metadata(None))
    try:
        return Source(pa.concat_tables(tables, promote_options="permissive"), class_names)
    except pa.ArrowException as error:
        raise UsageError(f"data.source: the files do not have the same columns and types: {brief(error)}") from None


def _in_folder(folder: Path) -> list[Path]:
    """The data files of a folder, sorted.

    In a folder that `Dataset.save_to_disk` wrote, these are the files that it lists, not the caches that `datasets`
    leaves there.

    Raises:
        UsageError: for compressed data files, which are not read, and for a table in two formats.
    """
    files: list[Path] = []
    for file in sorted(folder.rglob("*")):
        if any(part.startswith((".", "_")) for part in file.relative_to(folder).parts) or not file.is_file():
            continue
        if file.suffix.lower() in _PACKED and Path(file.stem).suffix.lower() in READERS:
            raise UsageError(
                f"data.source: {file} is packed, which is not read; unpack it, or move it out of the folder"
            )
        if file.suffix.lower() in READERS and _is_named(file):
            files.append(file)
    seen: dict[Path, Path] = {}
    for file in files:
        other = seen.setdefault(file.with_suffix(""), file)
        if other is not file:
            raise UsageError(
                f"data.source: {other} and {file.name} would be read one after the other; keep one if they hold "
                "the same rows, or rename one"
            )
    return files


def _is_named(file: Path) -> bool:
    """Whether a file in a folder of `Dataset.save_to_disk` is listed there; true in any other folder."""
    state = file.parent / "state.json"
    if file.suffix != ".arrow" or not state.is_file():
        return True
    try:
        return file.name in {
            entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return True


def add_class_names(known: ClassNames, found: ClassNames, columns: dict[str, str], where: str) -> None:
    """Add names of integer classes; raises a `UsageError` if a column's names differ from the known ones."""
    for setting, column in columns.items():
        if column in known and column in found and known[column] != found[column]:
            raise UsageError(
                f"data.{setting}: column {column!r} numbers its classes {', '.join(found[column])} in {where}, and "
                f"{', '.join(known[column])} before; cast both to the same ClassLabel, or to text"
            )
    known |= found


def check_columns(source: object, present: Sequence[str], columns: dict[str, str]) -> None:
    """Raise a `UsageError` for a missing column; the message lists the columns and suggests the nearest one."""
    for setting, column in columns.items():
        if column not in present:
            question = did_you_mean(column, present)
            hint = f"; {question}" if question else ""
            shown = ", ".join(map(repr, present[:20])) + (", ..." if len(present) > 20 else "")
            raise UsageError(f"data.{setting}: {source} has no column {column!r}, only {shown or 'none'}{hint}")


def files_digest(files: Sequence[Path]) -> str:
    """SHA-256 (hex) of the bytes of the files, in order."""
    result = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            result.update(hashlib.file_digest(stream, "sha256").digest() + file.suffix.encode())
    return result.hexdigest()


def _read_parquet(path: Path, columns: dict[str, str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        check_columns(path, file.schema_arrow.names, columns)
    return read_parquet(path, sorted(set(columns.values())))


def _read_csv(path: Path, columns: dict[str, str], delimiter: str = ",") -> pa.Table:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream, delimiter=delimiter), [])
    check_columns(path, header, columns)
    wanted = sorted(set(columns.values()))
    for setting, column in columns.items():
        if header.count(column) > 1:
            raise UsageError(
                f"data.{setting}: {path} has {header.count(column)} columns {column!r}; rename all but one"
            )
    _check_quotes(path, delimiter)
    # Read every column as text: type inference uses only the first block and fails on later values of another type.
    convert = pa.csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()))
    parse = pa.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
    return pa.csv.read_csv(path, parse_options=parse, convert_options=convert)


def _check_quotes(path: Path, delimiter: str) -> None:
    """Reject text after a closing quote, as in files that escape quotes by \\"; Arrow would silently misparse it."""
    limit = csv.field_size_limit(1 << 30)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            rows = csv.reader(stream, delimiter=delimiter, strict=True)
            try:
                for _ in rows:
                    pass
            except csv.Error as error:
                raise UsageError(
                    f"data.source: {path}, line {rows.line_num}: a quote is wrong ({error}); write a quote within a "
                    'quoted field as "" (not as \\"), or save the table as .parquet or .jsonl'
                ) from None
    finally:
        csv.field_size_limit(limit)


def _read_tsv(path: Path, columns: dict[str, str]) -> pa.Table:
    return _read_csv(path, columns, "\t")


def _read_jsonl(path: Path, columns: dict[str, str]) -> pa.Table:
    # A line may not be longer than a block.
    options = pa.json.ReadOptions(block_size=1 << 24)
    table = pa.json.read_json(path, read_options=options)
    check_columns(path, table.column_names, columns)
    dates = [
        field.name for field in table.schema if pa.types.is_temporal(field.type) and field.name in columns.values()
    ]
    if dates:  # JSON has no dates: these columns are text that looks like dates
        parse = pa.json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in dates]))
        table = pa.json.read_json(path, read_options=options, parse_options=parse)
    return table.select(sorted(set(columns.values())))


def _read_arrow(path: Path, columns: dict[str, str]) -> pa.Table:
    with pa.memory_map(str(path)) as stream:
        try:
            table = pa.ipc.open_file(stream).read_all()
        except pa.ArrowInvalid:
            stream.seek(0)
            table = pa.ipc.open_stream(stream).read_all()
    check_columns(path, table.column_names, columns)
    return table.select(sorted(set(columns.values())))


READERS: dict[str, Callable[[Path, dict[str, str]], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".arrow": _read_arrow,
}
"""Readers by suffix."""

_PACKED = {".gz", ".zip", ".zst", ".bz2", ".xz"}
"""Suffixes of compressed files."""
_FOREIGN = {".json", ".txt", ".xlsx", ".xls", ".gz", ".zip", ".zst", ".pkl", ".feather", ".npz"}
"""Suffixes of files in unsupported formats, by which a source is still recognised as a path."""


def _class_names_of_metadata(schema: pa.Schema) -> ClassNames:
    """Class names in the metadata that `datasets` writes into its files."""
    try:
        features: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: item["names"] for name, item in features.items() if item.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
