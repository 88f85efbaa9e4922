"""Tokenised data: what is in it, when the cache is used, and what happens when the cache is damaged, shared or full."""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sdm_ray.config import DataSettings, EncoderSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.types import Task
from sdm_ray.data import tokenized
from sdm_ray.data.sources import load_examples
from sdm_ray.data.splits import assign_splits
from sdm_ray.data.tokenized import TokenizedData, prepare
from sdm_ray.models.encoder import load_tokenizer, tokenizer_digest
from tests.fakes import files as helpers


@pytest.fixture(scope="module")
def tokenizer(encoder_folder: Path) -> Any:
    return load_tokenizer(EncoderSettings(name=str(encoder_folder)), cache_dir=encoder_folder)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever texts are tokenised."""
    calls: list[int] = []
    original = tokenized.tokenize

    def counting(*arguments: Any) -> TokenizedData:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(tokenized, "tokenize", counting)
    return calls


def equal(one: TokenizedData, two: TokenizedData) -> bool:
    names = ("input_ids", "lengths", "desired", "harmful", "split")
    return one.digest == two.digest and all(np.array_equal(getattr(one, n), getattr(two, n)) for n in names)


def test_contents(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    data = prepare(data_settings, tokenizer, "t", tmp_path)
    examples = load_examples(data_settings)
    assert data.input_ids.dtype == np.int32
    assert data.input_ids.shape == (240, 16)
    assert data.lengths.max() == 15
    for row in (0, 100, 239):
        expected = tokenizer(examples.texts[row])["input_ids"]
        assert data.lengths[row] == len(expected)
        assert data.input_ids[row].tolist() == expected + [data.pad_id] * (16 - len(expected))
    assert np.array_equal(data.labels(Task.DESIRED), examples.desired)
    assert np.array_equal(data.labels(Task.HARMFUL), examples.harmful)
    assert np.array_equal(data.split, assign_splits(examples, data_settings))
    assert data.label_names(Task.DESIRED) == ("nurse", "pilot", "tailor")
    assert data.label_names(Task.HARMFUL) == ("f", "m")


def test_truncation_keeps_special_tokens_and_does_not_widen(
    data_settings: DataSettings, tokenizer: Any, tmp_path: Path
) -> None:
    data = prepare(data_settings.model_copy(update={"max_length": 6}), tokenizer, "t", tmp_path)
    assert data.input_ids.shape == (240, 6)
    assert set(data.input_ids[:, 0]) == {tokenizer.cls_token_id}
    assert set(data.input_ids[:, 5]) == {tokenizer.sep_token_id}


def test_second_call_reads_the_cache(
    data_settings: DataSettings, tokenizer: Any, tmp_path: Path, count: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(data_settings, tokenizer, "t", tmp_path)

    def refuse(settings: DataSettings) -> None:
        raise AssertionError("the source was parsed again")

    monkeypatch.setattr(tokenized, "load_examples", refuse)
    second = prepare(data_settings, tokenizer, "t", tmp_path)
    assert len(count) == 1
    assert equal(first, second)


def test_key_follows_content_settings_and_tokenizer_but_not_the_place(
    data_settings: DataSettings, data_file: Path, tokenizer: Any, tmp_path: Path, count: list[int]
) -> None:
    prepare(data_settings, tokenizer, "t", tmp_path / "cache")
    moved = shutil.copy(data_file, tmp_path / "moved.parquet")
    prepare(data_settings.model_copy(update={"source": str(moved)}), tokenizer, "t", tmp_path / "cache")
    assert len(count) == 1
    for change in ({"max_length": 20}, {"split_seed": 1}, {"max_examples": 200}, {"scrub_pronouns": True}):
        prepare(data_settings.model_copy(update=change), tokenizer, "t", tmp_path / "cache")
    assert len(count) == 5
    prepare(data_settings, tokenizer, "other", tmp_path / "cache")
    assert len(count) == 6
    helpers.write_rows(Path(moved), helpers.make_rows(228))
    changed = prepare(data_settings.model_copy(update={"source": str(moved)}), tokenizer, "t", tmp_path / "cache")
    assert len(count) == 7
    assert len(changed.lengths) == 228


def test_synthetic_data_is_cached_by_content(tokenizer: Any, tmp_path: Path, count: list[int]) -> None:
    def settings(seed: int) -> DataSettings:
        world = {"version": 1, "num_examples": 1200, "num_names": 200, "num_professions": 2, "seed": seed}
        return DataSettings.model_validate({"synthetic": world, "max_length": 24})

    assert equal(*(prepare(settings(0), tokenizer, "t", tmp_path) for _ in range(2)))
    assert len(count) == 1
    prepare(settings(1), tokenizer, "t", tmp_path)
    assert len(count) == 2


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"\x07\x00\x00\x00", 2000)] ^= 2
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda arrow, sidecar: arrow.write_bytes(arrow.read_bytes()[:-400]),
    "empty": lambda arrow, sidecar: arrow.write_bytes(b""),
    "one byte": lambda arrow, sidecar: flip_byte(arrow),
    "no table": lambda arrow, sidecar: arrow.unlink(),
    "other table": lambda arrow, sidecar: helpers.write_rows(arrow, helpers.make_rows(6)),
    "no sidecar": lambda arrow, sidecar: sidecar.unlink(),
    "half a sidecar": lambda arrow, sidecar: sidecar.write_text(sidecar.read_text()[:20]),
    "another entry": lambda arrow, sidecar: sidecar.write_text(
        json.dumps(json.loads(sidecar.read_text()) | {"asked": "other"})
    ),
    "other sidecar": lambda arrow, sidecar: sidecar.write_text("[]"),
    "swapped labels": lambda arrow, sidecar: sidecar.write_text(
        json.dumps(json.loads(sidecar.read_text()) | {"harmful_labels": ["m", "f"]})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_built_again(
    damage: str, data_settings: DataSettings, tokenizer: Any, tmp_path: Path, count: list[int]
) -> None:
    first = prepare(data_settings, tokenizer, "t", tmp_path)
    first = TokenizedData(**{**vars(first), "input_ids": first.input_ids.copy(), "split": first.split.copy()})
    (arrow,) = (tmp_path / "tokenized").glob("*.arrow")
    DAMAGES[damage](arrow, arrow.with_suffix(".json"))
    assert equal(prepare(data_settings, tokenizer, "t", tmp_path), first)
    assert len(count) == 2
    assert equal(prepare(data_settings, tokenizer, "t", tmp_path), first)
    assert len(count) == 2
    assert sorted(path.suffix for path in arrow.parent.iterdir()) == [".arrow", ".json"]


def prepare_in_process(settings: DataSettings, encoder: Path, cache: Path, barrier: Any, results: Any) -> None:
    tokenizer = load_tokenizer(EncoderSettings(name=str(encoder)), cache_dir=cache)
    barrier.wait()
    for _ in range(20):
        results.put(prepare(settings, tokenizer, tokenizer_digest(tokenizer), cache).digest)
        for path in (cache / "tokenized").glob("*.json"):
            path.unlink(missing_ok=True)


def test_two_processes_may_prepare_and_remove_the_same_entry(
    data_settings: DataSettings, encoder_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    arguments = (data_settings, encoder_folder, tmp_path, barrier, results)
    processes = [context.Process(target=prepare_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    digests = {results.get() for _ in range(40)}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert digests == {prepare(data_settings, tokenizer, "t", tmp_path / "alone").digest}


def test_a_full_disk(
    data_settings: DataSettings, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, path: str, schema: pa.Schema) -> None:
            Path(path).write_bytes(b"half")

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write_table(self, table: pa.Table) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", Full)
    with pytest.raises(RunError, match=r"cannot write .*\.arrow: No space left on device"):
        prepare(data_settings, tokenizer, "t", tmp_path)
    assert list((tmp_path / "tokenized").iterdir()) == []


def test_a_cache_folder_that_cannot_be_written(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        prepare(data_settings, tokenizer, "t", tmp_path / "file")


def test_longer_texts_than_the_encoder_takes(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.max_length is 65, but the encoder takes at most 64 tokens"):
        prepare(data_settings.model_copy(update={"max_length": 65}), tokenizer, "t", tmp_path)


def test_a_text_without_tokens(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    class Bare:
        pad_token_id, model_max_length = 0, 64

        def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[5] if index else [] for index in range(len(texts))]}

    with pytest.raises(UsageError, match=r"1 of the texts .* no token \(row 1 first\)"):
        prepare(data_settings, Bare(), "t", tmp_path)


def test_positions_of_names_that_other_rules_found_are_found_again_and_kept(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where texts of held-out classes are not among the tokenised ones."""
    rows = helpers.make_rows()
    rows["text"] = [f"every {text}" for text in rows["text"]]
    rows["profession"] = [f"p{index % 4}" for index in range(len(rows["profession"]))]
    source = helpers.write_rows(tmp_path / "rows.parquet", rows)
    settings = DataSettings(source=str(source), max_length=24, benign_classes=2)
    first = prepare(settings, tokenizer, "t", tmp_path)
    assert first.known is not None
    assert (first.known[:, 0] > 0).all()
    (sidecar,) = (tmp_path / "tokenized").glob("*.json")
    document = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({name: value for name, value in document.items() if name != "names_version"}))
    again = prepare(settings, tokenizer, "t", tmp_path)
    assert again.known is not None
    assert again.known.tolist() == first.known.tolist()
    assert len(again.known) == len(again.lengths) < 240
    monkeypatch.setattr(tokenized, "load_examples", lambda settings: pytest.fail("the source was parsed again"))
    assert equal(prepare(settings, tokenizer, "t", tmp_path), first)
