"""Tokenise once: token ids, labels and splits in one Arrow file, whose cache key is a hash of all inputs."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sdm_ray.config import DataSettings, digest
from sdm_ray.core.cache import ASKED, SharedCache, is_asked, look_up, offer
from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import atomic_path, write_json
from sdm_ray.core.types import Task
from sdm_ray.data import names
from sdm_ray.data.sources import Examples, Labels, load_examples, source_digest
from sdm_ray.data.splits import assign_splits, check_classes, check_disjoint
from sdm_ray.data.withheld import withhold

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Increase this when the contents change for the same settings."""
NAMES_VERSION = 2
"""Version of the rules by which names are found. Positions that were found by others are found again."""
TOKEN_MULTIPLE = 8
"""Lengths are rounded up to a multiple of this."""

_CHUNK_ROWS = 8192


@dataclass(frozen=True)
class TokenizedData:
    """N tokenised examples, L tokens wide; arrays may be read-only views of a mapped file."""

    input_ids: np.ndarray
    """(N, L) int32, padded on the right with `pad_id`."""
    lengths: np.ndarray
    """(N,) int64 number of tokens of each text, special tokens included."""
    desired: np.ndarray
    """(N,) int64 class indices; `interface.UNLABELLED` where a text has no label."""
    harmful: np.ndarray
    """(N,) int64 class indices."""
    split: np.ndarray
    """(N,) int8 indices into `splits.SPLITS`."""
    desired_labels: tuple[str, ...]
    harmful_labels: tuple[str, ...]
    pad_id: int
    digest: str
    """SHA-256 (hex) of all other fields except `known`."""
    benign: dict[str, Labels] = field(default_factory=dict)
    """Labels of benign tasks by name."""
    known: np.ndarray | None = None
    """(N, 2) int32 token positions of a name in each text, see `KnowsPositions`; None if not computed."""

    def labels(self, task: Task) -> np.ndarray:
        """(N,) int64 class indices of a task."""
        return self.desired if task is Task.DESIRED else self.harmful

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names of a task, by index."""
        return self.desired_labels if task is Task.DESIRED else self.harmful_labels


def prepare(
    settings: DataSettings, tokenizer: Any, tokenizer_digest: str, cache_dir: Path, shared: SharedCache | None = None
) -> TokenizedData:
    """Load, check, split and tokenise the data, or read the result from the cache.

    The cache key covers the source's content (not its path), the settings that affect the result, the tokenizer and
    the format. A damaged entry is rebuilt. Files are replaced atomically and their content depends only on the key, so
    several processes may prepare the same data at once.

    Args:
        settings: the data settings.
        tokenizer: a fast Hugging Face tokenizer with a padding token.
        tokenizer_digest: its hash (`models.encoder.tokenizer_digest`).
        cache_dir: cache folder; the entry is `tokenized/<key>.arrow` and `.json` in it.
        shared: cache that is shared between machines; None for none.

    Raises:
        UsageError: for data or settings that cannot be used; see `load_examples`, `check_classes`.
        RunError: if the hub cannot be reached, or the cache cannot be written.
    """
    _check_max_length(settings, tokenizer)
    content = source_digest(settings)
    examples = None
    if content is None:
        examples = load_examples(settings)
        content = examples.digest
    key = _cache_key(settings, content, tokenizer_digest)
    path = cache_dir / "tokenized" / f"{key}.arrow"
    entry, files = f"tokenized/{key}", [path, path.with_suffix(".json")]
    data = look_up(cache_dir, entry, partial(_read, path), shared)
    if data is None:
        data = tokenize(examples or load_examples(settings), settings, tokenizer)
        _write(path, data, settings)
    elif data.known is None:  # an entry without positions of names, or with those of other rules
        kept, _ = split_and_withhold(examples or load_examples(settings), settings)
        data = replace(data, known=find_names(kept.texts, kept.groups, tokenizer, settings.max_length))
        _write(path, data, settings)
    offer(cache_dir, entry, files, shared)
    return data


def tokenize(examples: Examples, settings: DataSettings, tokenizer: Any) -> TokenizedData:
    """Split and tokenise examples; see `prepare`."""
    examples, split = split_and_withhold(examples, settings)
    check_classes(examples, split, settings)
    pad_id = int(tokenizer.pad_token_id)
    input_ids, lengths = encode(examples.texts, tokenizer, settings.max_length, pad_id)
    data = _assemble(
        {
            "input_ids": input_ids,
            "length": lengths,
            "desired": examples.desired,
            "harmful": examples.harmful,
            "split": split,
        },
        examples.desired_labels,
        examples.harmful_labels,
        pad_id,
        examples.benign,
    )
    return replace(data, known=find_names(examples.texts, examples.groups, tokenizer, settings.max_length))


def split_and_withhold(examples: Examples, settings: DataSettings) -> tuple[Examples, np.ndarray]:
    """The examples that are used, and the split of each (N,)."""
    split = assign_splits(examples, settings)
    check_disjoint(examples, split)
    return withhold(examples, split, settings)


def _check_max_length(settings: DataSettings, tokenizer: Any) -> None:
    limit = int(tokenizer.model_max_length)
    if settings.max_length > limit:
        raise UsageError(f"data.max_length is {settings.max_length}, but the encoder takes at most {limit} tokens")


def _cache_key(settings: DataSettings, content: str, tokenizer_digest: str) -> str:
    acting = settings.identity(exclude={"source", "revision", "synthetic"})
    return digest([FORMAT_VERSION, settings.source == "synthetic", acting, content, tokenizer_digest])


def encode(texts: list[str], tokenizer: Any, max_length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (N, L) int32 and lengths (N,) int64; L is the longest length, rounded up to a multiple of 8.

    Raises:
        UsageError: for texts without tokens.
    """
    ids = np.full((len(texts), max_length), pad_id, dtype=np.int32)
    lengths = np.empty(len(texts), dtype=np.int64)
    for start in range(0, len(texts), _CHUNK_ROWS):
        encoded = tokenizer(
            texts[start : start + _CHUNK_ROWS],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for row, tokens in enumerate(encoded, start=start):
            ids[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
    if not lengths.all():
        rows = np.flatnonzero(lengths == 0) + 1
        raise UsageError(f"data.text_column: {len(rows)} of the texts give no token (row {rows[0]} first); remove them")
    # At most max_length: the encoder may not have more position embeddings.
    width = min(round_up(int(lengths.max())), max_length)
    return np.ascontiguousarray(ids[:, :width]), lengths


def find_names(texts: list[str], groups: list[str] | None, tokenizer: Any, max_length: int) -> np.ndarray:
    """(N, 2) int32 token positions of a name in each text; `groups` holds the texts' names, if known."""
    characters, found = names.spans(texts, groups), list[names.Span]()
    for start in range(0, len(texts), _CHUNK_ROWS):
        encoded = tokenizer(
            texts[start : start + _CHUNK_ROWS],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
        )["offset_mapping"]
        found += [
            names.positions(offsets, characters[row], texts[row]) for row, offsets in enumerate(encoded, start=start)
        ]
    return names.as_array(found)


def round_up(length: int) -> int:
    """The next multiple of `TOKEN_MULTIPLE`."""
    return -(-length // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


def power_of_two(length: int) -> int:
    """The next power of two."""
    return int(1 << (length - 1).bit_length())


def _assemble(
    arrays: dict[str, np.ndarray],
    desired_labels: tuple[str, ...],
    harmful_labels: tuple[str, ...],
    pad_id: int,
    benign: dict[str, Labels],
) -> TokenizedData:
    header = json.dumps([desired_labels, harmful_labels, pad_id, arrays["input_ids"].shape])
    result = hashlib.sha256(header.encode())
    for name in _COLUMNS:
        result.update(np.ascontiguousarray(arrays[name], dtype=_COLUMNS[name]).data)
    for name, labels in benign.items():
        result.update(json.dumps([name, labels.names]).encode())
        result.update(np.ascontiguousarray(labels.codes, dtype=_LABELS).data)
    return TokenizedData(
        input_ids=arrays["input_ids"],
        lengths=arrays["length"].astype(np.int64),
        desired=arrays["desired"].astype(np.int64),
        harmful=arrays["harmful"].astype(np.int64),
        split=arrays["split"],
        desired_labels=desired_labels,
        harmful_labels=harmful_labels,
        pad_id=pad_id,
        digest=result.hexdigest(),
        benign=benign,
    )


_COLUMNS = {"input_ids": "<i4", "length": "<i4", "desired": "<i4", "harmful": "<i4", "split": "<i1"}
"""Columns of the Arrow file and their types, except `names` (`known`), which older files lack."""
_LABELS = "<i4"
"""Type of the columns of benign labels, one per task, which come after these."""


def _benign_column(name: str) -> str:
    return f"benign: {name}"


def _write(path: Path, data: TokenizedData, settings: DataSettings) -> None:
    """Write the Arrow file, then the sidecar, without which the entry is not valid."""
    arrays = {"length": data.lengths, "desired": data.desired, "harmful": data.harmful, "split": data.split}
    ids = pa.FixedSizeListArray.from_arrays(pa.array(data.input_ids.reshape(-1)), data.input_ids.shape[1])
    lists = {"input_ids": ids}
    if data.known is not None:
        lists["names"] = pa.FixedSizeListArray.from_arrays(pa.array(data.known.reshape(-1)), 2)
    columns = lists | {name: pa.array(array.astype(_COLUMNS[name])) for name, array in arrays.items()}
    columns |= {_benign_column(name): pa.array(labels.codes.astype(_LABELS)) for name, labels in data.benign.items()}
    table = pa.table(columns)
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)
    sidecar = {
        ASKED: path.stem,
        "format_version": FORMAT_VERSION,
        "names_version": NAMES_VERSION,
        "digest": data.digest,
        "num_examples": len(data.lengths),
        "desired_labels": data.desired_labels,
        "harmful_labels": data.harmful_labels,
        "pad_id": data.pad_id,
        "benign": {name: labels.names for name, labels in data.benign.items()},
        "settings": settings.model_dump(mode="json"),
    }
    write_json(path.with_suffix(".json"), sidecar)


def _known(table: pa.Table) -> np.ndarray | None:
    """(N, 2) token positions of names; None in older files."""
    if "names" not in table.column_names:
        return None
    values: np.ndarray = table["names"].chunk(0).flatten().to_numpy().reshape(-1, 2)
    return values


def _read(path: Path) -> TokenizedData | None:
    """Read the entry; None if it is missing or damaged."""
    sidecar_path = path.with_suffix(".json")
    if not sidecar_path.exists():
        return None
    try:
        sidecar = json.loads(sidecar_path.read_text(encoding="utf-8"))
        with pa.memory_map(str(path)) as stream:
            table = pa.ipc.open_file(stream).read_all()
        ids = table["input_ids"].chunk(0)
        arrays = {name: table[name].chunk(0).to_numpy() for name in _COLUMNS if name != "input_ids"}
        arrays["input_ids"] = ids.flatten().to_numpy().reshape(len(ids), ids.type.list_size)
        benign = {
            name: Labels(table[_benign_column(name)].chunk(0).to_numpy().astype(np.int64), tuple(names))
            for name, names in sidecar.get("benign", {}).items()
        }
        desired_labels, harmful_labels = (tuple(sidecar[name]) for name in ("desired_labels", "harmful_labels"))
        data = _assemble(arrays, desired_labels, harmful_labels, int(sidecar["pad_id"]), benign)
        if data.digest == sidecar["digest"] and is_asked(path.stem, sidecar.get(ASKED)):
            return replace(data, known=_known(table) if sidecar.get("names_version") == NAMES_VERSION else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, pa.ArrowException):
        pass
    log.warning("tokenised data in %s is damaged or of other data; it is built again", path)
    return None
