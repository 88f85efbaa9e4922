"""General text for the retention terms (`retain_*`) and distillation: read, tokenised and moved to the device once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sdm_ray.config import GeneralTextSettings, RetainSettings, SyntheticWorld
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.hub import is_hub_id
from sdm_ray.core.types import Task
from sdm_ray.data.hub import read_hub
from sdm_ray.data.interface import Dataset, KnowsPositions
from sdm_ray.data.names import counted
from sdm_ray.data.readers import Source, data_files, read_files
from sdm_ray.data.scrub import scrub_names, scrub_pronouns, word_scrubber
from sdm_ray.data.sources import is_text, normalise
from sdm_ray.data.synthetic import gendered_words, pretraining_texts, telling_words
from sdm_ray.data.tokenized import encode, round_up

CHUNK_TEXTS = 8192
"""Texts per copy from the device."""


class GeneralText:
    """N unlabelled texts on `device`; ids and lengths are on the host too.

    Args:
        input_ids: (N, L) integers, padded on the right.
        lengths: (N,) number of tokens of each text, including special tokens.
        device: device of the batches.
    """

    def __init__(self, input_ids: np.ndarray, lengths: np.ndarray, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.digest = _digest(input_ids, lengths)
        self._lengths_host = lengths.astype(np.int64)
        self._ids_host = torch.from_numpy(input_ids.astype(np.int64))
        self._input_ids = self._ids_host.to(self.device)
        self._lengths = torch.from_numpy(self._lengths_host).to(self.device)
        self._positions = torch.arange(self.width, device=self.device)

    def __len__(self) -> int:
        return len(self._lengths_host)

    @property
    def width(self) -> int:
        """L: tokens of the widest batch."""
        return int(self._ids_host.shape[1])

    @property
    def max_id(self) -> int:
        """Largest token id, padding included."""
        return int(self._ids_host.max())

    def host_ids(self, indices: Tensor) -> Tensor:
        """(B, L') int64 token ids of texts (host indices (B,)) on the host, with the same width as their batch."""
        return self._ids_host[:, : self._width_of(indices)][indices]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask (B, L') of texts (host indices (B,)), gathered on the device without synchronisation.

        Their width is that of the longest of these texts, rounded up to a multiple of 8.
        """
        width, rows = self._width_of(indices), self.send(indices)
        return self._input_ids[:, :width][rows], (self._positions[:width] < self._lengths[rows].unsqueeze(-1)).long()

    def send(self, values: Tensor) -> Tensor:
        """Copy a host tensor to the device without synchronisation."""
        if self.device.type == "cuda":
            # A copy from pageable memory would synchronise with the device.
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def _width_of(self, indices: Tensor) -> int:
        return min(round_up(int(self._lengths_host[indices.numpy()].max())), self.width)


def load_general_text(
    settings: RetainSettings | GeneralTextSettings,
    tokenizer: Any,
    *,
    world: SyntheticWorld,
    max_length: int,
    device: torch.device | str,
    scrubbed: bool = False,
    keep_names: bool = False,
) -> GeneralText:
    """Read and tokenise the text of a source that is not None; blank texts and duplicates are dropped.

    Keeps the `max_texts` texts with the smallest content hashes, in that order, independent of the row order.

    Args:
        settings: source, column and number of texts.
        tokenizer: the encoder's fast tokenizer.
        world: the synthetic world whose corpus `pretraining` refers to.
        max_length: maximum number of tokens per text.
        device: device of the batches.
        scrubbed: remove words that reveal the secret: names and gendered words of the synthetic world in its corpus,
            and in other texts what `scrub_names` finds.
        keep_names: remove only gendered words (in other texts than the corpus: pronouns) and keep names.

    Raises:
        UsageError: for an unusable source or column, or one without text.
        RunError: if the hub cannot be reached.
    """
    assert settings.source is not None
    with _own_settings_named("train.retain" if isinstance(settings, RetainSettings) else "train.distil.general"):
        texts = pretraining_texts(world) if settings.source == "pretraining" else _read(settings)
        if scrubbed:
            if settings.source == "pretraining":
                scrub = word_scrubber(gendered_words() if keep_names else telling_words(world))
            else:
                scrub = scrub_pronouns if keep_names else partial(scrub_names, capitals=counted(texts))
            texts = [scrub(text) for text in texts]
        kept = _smallest_hashes([text for text in texts if text.strip()], settings.max_texts)
        if not kept:
            raise UsageError(f"data.source: {settings.source} holds no text in column {settings.text_column!r}")
        input_ids, lengths = encode(kept, tokenizer, max_length, int(tokenizer.pad_token_id))
    return GeneralText(input_ids, lengths, device)


def meta_training_text(
    data: Dataset, indices: Tensor, max_texts: int | None = None, *, scrubbed: bool = False
) -> GeneralText:
    """Texts of examples as general text: the `max_texts` texts with the smallest hashes of their tokens.

    Args:
        data: examples on the device; this synchronises with it.
        indices: (N,) host indices.
        max_texts: number of texts to keep; None keeps all.
        scrubbed: remove the known token positions of a name (`KnowsPositions`). If a word of the name has more than two
            tokens, the others stay; if the name of a text is unknown, the word after the first capitalised one is
            removed too.
    """
    chunks = torch.split(indices, CHUNK_TEXTS)
    width = max(data.batch(chunk, Task.DESIRED).input_ids.shape[1] for chunk in chunks)
    batches = [data.batch(chunk, Task.DESIRED, pad_to=width) for chunk in chunks]
    ids = torch.cat([batch.input_ids for batch in batches]).cpu().numpy()
    lengths = torch.cat([batch.attention_mask.sum(1) for batch in batches]).cpu().numpy()
    known = data.known_positions_host() if scrubbed and isinstance(data, KnowsPositions) else None
    if known is not None:
        ids, lengths = _without_places(ids, lengths, known[indices].numpy())
    by_hash = {
        _key(row[:length].tobytes()): index for index, (row, length) in enumerate(zip(ids, lengths, strict=True))
    }
    kept = [by_hash[key] for key in sorted(by_hash)[:max_texts]]
    return GeneralText(ids[kept], lengths[kept], data.device)


def _without_places(ids: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove tokens at some places (N, 2; -1 is none) from texts (N, L), closing gaps; returns the new lengths too."""
    positions = np.arange(ids.shape[1])
    kept = (positions < lengths[:, None]) & ~(positions[:, None] == places[:, None, :]).any(-1)
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), kept.sum(1)


def _read(settings: RetainSettings | GeneralTextSettings) -> list[str]:
    assert settings.source is not None
    columns = {"text_column": settings.text_column}
    files = data_files(settings.source)
    if files is not None:
        return _texts(read_files(files, columns), settings)
    if not is_hub_id(settings.source):
        raise UsageError(
            f"data.source {settings.source!r} is neither 'pretraining', nor an existing file or folder, nor a hub id "
            "(owner/name)"
        )
    return _texts(read_hub(settings.source, settings.revision, columns), settings)


def _texts(source: Source, settings: RetainSettings | GeneralTextSettings) -> list[str]:
    """Values of the text column without nulls."""
    column = source.table[settings.text_column]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_text(kind) or pa.types.is_null(kind)):
        raise UsageError(f"data.text_column: column {settings.text_column!r} holds {kind}, it must hold text")
    values: list[str] = column.cast(pa.large_string()).drop_null().to_pylist()
    return values


def _smallest_hashes(texts: list[str], count: int) -> list[str]:
    by_hash = {_key(normalise(text).encode()): text for text in texts}
    return [by_hash[key] for key in sorted(by_hash)[:count]]


def _key(content: bytes) -> bytes:
    return hashlib.sha256(b"general\0" + content).digest()


def _digest(input_ids: np.ndarray, lengths: np.ndarray) -> str:
    """SHA-256 (hex) of the texts."""
    result = hashlib.sha256(repr(input_ids.shape).encode())
    for array in (input_ids, lengths):
        result.update(np.ascontiguousarray(array, dtype="<i8").data)
    return result.hexdigest()


@contextmanager
def _own_settings_named(path: str) -> Iterator[None]:
    """Rewrite the readers' errors, which name `data.source`, to name the settings at `path` instead."""
    try:
        yield
    except (UsageError, RunError) as error:
        message = re.sub(r"\bdata\.(source|text_column)\b", rf"{path}.\1", str(error))
        raise type(error)(message) from None
