"""Read examples from the synthetic world, a local file, the Hugging Face hub or a user's source; check and scrub them,
and turn labels into class indices."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdm_ray.config import DataSettings, SyntheticWorld
from sdm_ray.core.errors import UsageError
from sdm_ray.core.hub import brief, is_hub_id
from sdm_ray.data.hub import read_hub
from sdm_ray.data.own_sources import OWN_SOURCES, read_own
from sdm_ray.data.readers import Source, check_columns, data_files, files_digest, read_files
from sdm_ray.data.scrub import scrub_pronouns

_BENIGN = "benign_columns."


@dataclass(frozen=True)
class Labels:
    """Labels of one task over N examples."""

    codes: np.ndarray
    """(N,) int64 class indices, or `interface.UNLABELLED`."""
    names: tuple[str, ...]
    """Class names by index."""


@dataclass(frozen=True)
class Examples:
    """N texts with two labels each."""

    texts: list[str]
    desired: np.ndarray
    """(N,) int64 indices into `desired_labels`."""
    harmful: np.ndarray
    """(N,) int64 indices into `harmful_labels`."""
    groups: list[str] | None
    """Group of each text; a group stays within one split. None if each text is its own group."""
    desired_labels: tuple[str, ...]
    harmful_labels: tuple[str, ...]
    digest: str
    """SHA-256 (hex) of the loaded texts, labels and groups."""
    benign: dict[str, Labels] = field(default_factory=dict)
    """Labels of benign tasks by name; training never uses them."""

    def rows(self, kept: np.ndarray) -> Examples:
        """The examples at the indices `kept` (M,), in that order; the digest is not changed."""
        return replace(
            self,
            texts=[self.texts[row] for row in kept],
            desired=self.desired[kept],
            harmful=self.harmful[kept],
            groups=None if self.groups is None else [self.groups[row] for row in kept],
            benign={name: Labels(labels.codes[kept], labels.names) for name, labels in self.benign.items()},
        )


def load_examples(settings: DataSettings) -> Examples:
    """Read, check and scrub the examples, and keep `max_examples` of them.

    Labels are text or integers. Class names are sorted, numerically if all are integers; integer classes get their
    names from the Hugging Face dataset's features if it has names. A text may occur several times, also with different
    labels: all its rows are kept, in one split. `max_examples` keeps the texts with the smallest content hashes,
    whatever the order of the rows.

    Raises:
        UsageError: for a source, a column, a text or a label that cannot be used.
        RunError: if the hub cannot be reached.
    """
    source = _read(settings)
    columns = _columns(settings)
    texts = _texts(source.table[columns["text_column"]], settings)
    if settings.scrub_pronouns:
        texts = [scrub_pronouns(text) for text in texts]
    desired, desired_labels = _labels(source, "desired_column", columns)
    harmful, harmful_labels = _labels(source, "harmful_column", columns)
    groups = None
    if "group_column" in columns:
        groups = _strings(
            source.table[columns["group_column"]], f"data.group_column: column {columns['group_column']!r}"
        )
    benign = {
        columns[setting]: Labels(*_labels(source, setting, columns))
        for setting in columns
        if setting in _benign(columns)
    }
    examples = Examples(texts, desired, harmful, groups, desired_labels, harmful_labels, "", benign)
    if settings.max_examples is not None and settings.max_examples < len(texts):
        examples = examples.rows(_smallest_hashes(texts, settings.max_examples))
    return replace(examples, digest=_digest(examples))


def source_digest(settings: DataSettings) -> str | None:
    """SHA-256 (hex) of a local source's files, without parsing them; None if the source is not a local file or
    folder."""
    if settings.source == "synthetic" or settings.source in OWN_SOURCES:
        return None
    files = data_files(settings.source)
    return None if files is None else files_digest(files)


def benign_columns(settings: DataSettings) -> tuple[str, ...]:
    """Columns with labels of benign tasks: those in the settings, else those of the synthetic world."""
    own = _world_benign(settings.synthetic) if settings.source == "synthetic" else ()
    return settings.benign_columns or own


def normalise(text: str) -> str:
    """The text with case folded and white space collapsed; texts with equal results count as the same content."""
    return " ".join(text.casefold().split())


def _read(settings: DataSettings) -> Source:
    columns = _columns(settings)
    if settings.source == "synthetic":
        from sdm_ray.data.synthetic import task_table

        table = task_table(settings.synthetic, settings.splits, settings.split_seed)
        check_columns(f"version {settings.synthetic.version} of the synthetic world", table.column_names, columns)
        return Source(table, {})
    if settings.source in OWN_SOURCES:
        table = read_own(settings)
        check_columns(f"data.source {settings.source!r}", table.column_names, columns)
        return Source(table, {})
    files = data_files(settings.source)
    if files is not None:
        return read_files(files, columns)
    if not is_hub_id(settings.source):
        raise UsageError(
            f"data.source {settings.source!r} is neither 'synthetic', nor an existing file or folder, nor a hub id "
            f"(owner/name), nor a source that a module in `modules` registers{_registered()}"
        )
    return read_hub(settings.source, settings.revision, columns)


def _registered() -> str:
    return f" ({', '.join(OWN_SOURCES)})" if OWN_SOURCES else ""


def _columns(settings: DataSettings) -> dict[str, str]:
    """Column name by setting."""
    if settings.source == "synthetic":
        columns = {
            "text_column": "text", "desired_column": "profession", "harmful_column": "gender", "group_column": "name"
        }  # fmt: skip
        return columns | _numbered(benign_columns(settings))
    columns = {
        "text_column": settings.text_column,
        "desired_column": settings.desired_column,
        "harmful_column": settings.harmful_column,
    }
    if len(set(columns.values())) < len(columns):
        raise UsageError(f"data: text, desired and harmful column must differ, got {', '.join(columns.values())}")
    columns |= _numbered(benign_columns(settings))
    if len(set(columns.values())) < len(columns):
        raise UsageError(
            f"data.benign_columns: a column must have one use, got {', '.join(columns.values())}; name further ones"
        )
    if settings.group_column is not None:
        columns["group_column"] = settings.group_column
    return columns


def _numbered(names: Sequence[str]) -> dict[str, str]:
    """Column name by setting, for benign columns: one numbered setting each."""
    return {f"{_BENIGN}{index}": name for index, name in enumerate(names)}


def _world_benign(world: SyntheticWorld) -> tuple[str, ...]:
    """Columns with benign labels in a synthetic world."""
    return () if world.version == 1 else ("origin", "region", "pastime")


def _benign(columns: Iterable[str]) -> list[str]:
    return [setting for setting in columns if setting.startswith(_BENIGN)]


def _texts(column: pa.ChunkedArray, settings: DataSettings) -> list[str]:
    where = f"data.text_column: column {settings.text_column!r}"
    if len(column) == 0:
        raise UsageError(f"data.source: {settings.source} holds no rows")
    if not is_text(column.type):
        raise UsageError(f"{where} holds {column.type}, it must hold text")
    return _strings(column, where)


def _strings(column: pa.ChunkedArray, where: str) -> list[str]:
    """A column as text; missing and blank values are errors."""
    try:
        text = _decoded(column).cast(pa.large_string())
    except pa.ArrowException as error:
        raise UsageError(f"{where} cannot be read as text: {brief(error)}") from None
    _refuse_missing(pc.equal(pc.utf8_trim_whitespace(text), ""), where)
    values: list[str] = text.to_pylist()
    return values


def _labels(source: Source, setting: str, columns: dict[str, str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) class indices and the sorted class names of a label column."""
    name = columns[setting]
    where = f"data.{setting}: column {name!r}"
    column = _decoded(source.table[name])
    kind = column.type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UsageError(f"{where} holds {kind}, labels must be text or whole numbers")
    names = source.class_names.get(name)
    if names is not None and pa.types.is_integer(kind):
        outside = pc.or_(pc.less(column, 0), pc.greater_equal(column, len(names)))
        _refuse_missing(outside, where, what="unlabelled")
        column = pa.chunked_array([pc.take(pa.array(names), column.combine_chunks())])
    text = column.cast(pa.large_string())
    _refuse_missing(pc.equal(pc.utf8_trim_whitespace(text), ""), where)
    values: list[str] = sorted(pc.unique(text).to_pylist())
    if all(_is_integer(value) for value in values):
        values.sort(key=int)
    trimmed = [value.strip() for value in values]
    for value in values:
        if trimmed.count(value.strip()) > 1:
            raise UsageError(
                f"{where} has classes that differ by white space alone, such as {value!r}; trim its values"
            )
    _refuse_marks(values, text, where)
    if len(values) < 2:
        raise UsageError(f"{where} has one class, {values[0]!r}; two or more are needed")
    codes = pc.index_in(text, value_set=pa.array(values, pa.large_string()))
    return np.asarray(codes.to_numpy(), dtype=np.int64), tuple(values)


def _refuse_marks(names: Sequence[str], labels: pa.ChunkedArray, where: str) -> None:
    """Reject values that mean "no label": -1 beside classes numbered from 0, and markers that exports write."""
    others = [name for name in names if name != "-1"]
    numbered = others == [str(index) for index in range(len(others))] and len(others) > 1
    marks = {"-1"} if numbered else {name for name in names if name.strip().casefold() in NO_LABEL}
    for mark in sorted(marks & set(names)):
        count = pc.sum(pc.equal(labels, mark)).as_py()
        raise UsageError(
            f"{where} holds {mark!r} in {count} of {len(labels)} rows, which is how missing labels are written; remove "
            "these rows, or where it is a class of its own give it a name"
        )


NO_LABEL = {"nan", "nat", "<na>", "#n/a"}
"""Markers of missing values from pandas and spreadsheets, in lower case."""


def _is_integer(value: str) -> bool:
    return re.fullmatch(r"-?\d+", value, re.ASCII) is not None


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's type is text, in any of Arrow's layouts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _refuse_missing(wrong: pa.ChunkedArray, where: str, what: str = "missing or empty") -> None:
    """Raise a `UsageError` if `wrong` is true or null in any row; rows are counted from 1, in the order of the
    files."""
    rows = np.flatnonzero(pc.fill_null(wrong, True).to_numpy(zero_copy_only=False)) + 1
    if len(rows):
        first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise UsageError(
            f"{where} has {len(rows)} {what} value{'s' * (len(rows) > 1)} (row {first}); remove or fill them"
        )


def _smallest_hashes(texts: list[str], count: int) -> np.ndarray:
    """Rows with the `count` smallest content hashes, in their original order; splits use different hashes."""
    keys = [hashlib.sha256(b"keep\0" + normalise(text).encode()).digest() for text in texts]
    return np.array(sorted(sorted(range(len(texts)), key=keys.__getitem__)[:count]))


def _digest(examples: Examples) -> str:
    names = (examples.desired_labels, examples.harmful_labels, len(examples.texts), examples.groups is None)
    result = hashlib.sha256(repr(names).encode())
    result.update(examples.desired.tobytes())
    result.update(examples.harmful.tobytes())
    for values in (examples.texts, examples.groups or []):
        for value in values:
            encoded = value.encode("utf-8", "surrogatepass")
            result.update(len(encoded).to_bytes(8, "little") + encoded)
    for name, labels in examples.benign.items():
        result.update(repr((name, labels.names)).encode() + labels.codes.tobytes())
    return result.hexdigest()
