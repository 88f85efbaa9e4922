"""What every dataset must do for training and attacks, whatever it was read from: one suite, a registry of sources.

A new source gets these tests by an entry in `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
import torch

from sdm_ray.attack.findings.benign import GroupedData
from sdm_ray.config import DataSettings, EncoderSettings
from sdm_ray.core.types import Split, Task
from sdm_ray.data.device import DeviceData
from sdm_ray.data.interface import AttackDataset, Dataset, TrainingDataset
from sdm_ray.data.regression import RegressionWorld, SignedVectors
from sdm_ray.data.sources import load_examples
from sdm_ray.data.tokenized import tokenize
from sdm_ray.models.encoder import load_tokenizer
from tests.fakes import files as helpers

NUM_EXAMPLES = 120


def texts(encoder: str | Path, source: str | Path, **changes: Any) -> DeviceData:
    settings = DataSettings.model_validate({"source": str(source), "max_length": 24, **changes})
    tokenizer = load_tokenizer(EncoderSettings(name=str(encoder)), cache_dir=Path(encoder), world=settings.synthetic)
    return DeviceData(tokenize(load_examples(settings), settings, tokenizer), "cpu")


def file(suffix: str) -> Callable[[Path, Path], DeviceData]:
    def make(folder: Path, encoder: Path) -> DeviceData:
        return texts(encoder, helpers.write_rows(folder / f"rows{suffix}", helpers.make_rows(NUM_EXAMPLES)))

    return make


def split_dataset() -> datasets.DatasetDict:
    """As the hub has them: two splits, integer classes with names."""
    rows = helpers.make_rows(NUM_EXAMPLES)
    whole = datasets.Dataset.from_dict(rows).class_encode_column("profession")
    return datasets.DatasetDict({"train": whole.select(range(80)), "test": whole.select(range(80, NUM_EXAMPLES))})


def dataset_folder(folder: Path, encoder: Path) -> DeviceData:
    for index, part in enumerate(split_dataset().values()):
        part.to_parquet(folder / "data" / f"part-{index}.parquet")
    return texts(encoder, folder / "data")


def hub(folder: Path, encoder: Path) -> DeviceData:
    with mock.patch.object(datasets, "load_dataset", return_value=split_dataset()):
        return texts(encoder, "owner/name")


def synthetic(folder: Path, encoder: Path) -> DeviceData:
    return texts("builtin", "synthetic", synthetic={"version": 1, "num_examples": 1200})


SOURCES: dict[str, Callable[[Path, Path], Any]] = {
    "synthetic": synthetic,
    "parquet": file(".parquet"),
    "csv": file(".csv"),
    "jsonl": file(".jsonl"),
    "arrow": file(".arrow"),
    "dataset folder": dataset_folder,
    "hub": hub,
    "grouped labels": lambda folder, encoder: GroupedData(file(".parquet")(folder, encoder), 2),
    "vectors": lambda folder, encoder: RegressionWorld(NUM_EXAMPLES, 0, input_dim=5),
    "signed vectors": lambda folder, encoder: SignedVectors(RegressionWorld(NUM_EXAMPLES, 0, input_dim=5)),
}
"""(empty folder, encoder with a tokenizer) -> the same dataset at every call."""
ATTACKED = [name for name in SOURCES if name != "vectors"]
"""Those with classes."""
TRAINED = [name for name in SOURCES if name != "grouped labels"]
SAME_ROWS = ("parquet", "csv", "jsonl", "arrow", "dataset folder", "hub")


@pytest.fixture(scope="module")
def make(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The dataset of a source, made anew."""
    return lambda name: SOURCES[name](tmp_path_factory.mktemp("source"), encoder_folder)


@pytest.fixture(scope="module")
def made(make: Callable[[str], Any]) -> dict[str, Any]:
    return {name: make(name) for name in SOURCES}


def size_of(data: Dataset) -> int:
    return len(data.labels_host(Task.DESIRED))


@pytest.mark.parametrize("name", SOURCES)
def test_splits_are_sorted_disjoint_complete_and_not_empty(name: str, made: dict[str, Any]) -> None:
    data: Dataset = made[name]
    parts = [data.indices(split) for split in Split]
    assert all(len(part) for part in parts)
    for part in parts:
        assert part.dtype == torch.int64
        assert torch.equal(part, part.sort().values)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(size_of(data)))


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_source_gives_the_same_data_and_digest(
    name: str, made: dict[str, Any], make: Callable[[str], Any]
) -> None:
    data, again = made[name], make(name)
    assert len(data.digest) >= 64
    assert data.digest == again.digest
    indices = torch.arange(size_of(data))
    for task in Task:
        one, other = data.batch(indices, task), again.batch(indices, task)
        assert torch.equal(one.labels, other.labels)
        assert all(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
    assert all(torch.equal(data.indices(split), again.indices(split)) for split in Split)


def test_sources_differ_in_digest_exactly_where_they_differ_in_content(made: dict[str, Any]) -> None:
    assert len({made[name].digest for name in SAME_ROWS}) == 1
    others = [name for name in SOURCES if name not in SAME_ROWS[1:]]
    assert len({made[name].digest for name in others}) == len(others)


@pytest.mark.parametrize("name", SOURCES)
def test_batches_of_any_shape_hold_the_rows_that_were_asked_for(name: str, made: dict[str, Any]) -> None:
    data: Dataset = made[name]
    indices = torch.tensor([[3, 3, 7, 0], [11, 1, 2, 9]])
    for task in Task:
        with helpers.NoHostSync():
            batch, coarse = data.batch(indices, task), data.batch(indices, task, coarse=True)
        assert torch.equal(batch.labels, data.labels_host(task)[indices])
        assert torch.equal(coarse.labels, batch.labels)
        assert batch.labels.device == data.device
        flat = data.batch(indices.flatten(), task)
        for values, rows, wider in zip(batch.inputs, flat.inputs, coarse.inputs, strict=True):
            assert values.shape[:2] == indices.shape
            assert torch.equal(values.flatten(0, 1), rows)
            assert torch.equal(wider[..., : values.shape[-1]], values)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_handed_out_is_a_copy(name: str, made: dict[str, Any]) -> None:
    data: Dataset = made[name]
    kept = data.indices(Split.TEST), data.labels_host(Task.HARMFUL), data.batch(torch.arange(4), Task.HARMFUL)
    for handed in (data.indices(Split.TEST), data.labels_host(Task.HARMFUL)):
        handed.zero_()
    for values in data.batch(torch.arange(4), Task.HARMFUL):
        for value in values if isinstance(values, tuple) else (values,):
            value.zero_()
    assert torch.equal(data.indices(Split.TEST), kept[0])
    assert torch.equal(data.labels_host(Task.HARMFUL), kept[1])
    again = data.batch(torch.arange(4), Task.HARMFUL)
    assert torch.equal(again.labels, kept[2].labels)
    assert all(torch.equal(a, b) for a, b in zip(again.inputs, kept[2].inputs, strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_occurring_tokens_are_those_of_the_batch_and_none_without_tokens(name: str, made: dict[str, Any]) -> None:
    data: TrainingDataset = made[name]
    indices = torch.tensor([[3, 3], [7, 40]])
    found = data.occurring_tokens(indices)
    assert found.dtype == torch.int64
    if "vectors" in name:
        assert not len(found)
    else:
        # 64 tokens are wider than any text, so that padding occurs.
        assert torch.equal(found, data.batch(indices, Task.DESIRED, pad_to=64).input_ids.unique())


@pytest.mark.parametrize("name", ATTACKED)
def test_labels_are_classes_with_names_and_every_split_of_the_attacker_has_them_all(
    name: str, made: dict[str, Any]
) -> None:
    data: AttackDataset = made[name]
    for task in Task:
        labels, count = data.labels_host(task), data.num_classes(task)
        assert labels.dtype == torch.int64
        assert len(set(data.label_names(task))) == count >= 2
        assert int(labels.min()) == 0
        assert int(labels.max()) == count - 1
    for split in (Split.ATTACKER_TRAIN, Split.ATTACKER_VAL, Split.TEST):
        found = data.labels_host(Task.HARMFUL)[data.indices(split)].unique()
        assert len(found) == data.num_classes(Task.HARMFUL)


@pytest.mark.parametrize("name", ATTACKED)
def test_lengths_are_those_of_the_masks(name: str, made: dict[str, Any]) -> None:
    data: AttackDataset = made[name]
    indices = torch.arange(12)
    lengths = data.lengths_host()[indices]
    batch = data.batch(indices, Task.DESIRED, pad_to=int(lengths.max()))
    assert batch.attention_mask.dtype == torch.int64
    assert torch.equal(batch.attention_mask.sum(-1), lengths)
    assert batch.attention_mask.shape[-1] == int(lengths.max())


@pytest.mark.parametrize("name", ATTACKED)
def test_data_travel_to_a_device(name: str, made: dict[str, Any]) -> None:
    data: AttackDataset = made[name]
    moved, stayed = data.to("meta"), data.to("cpu")
    assert moved.device == torch.device("meta")
    assert data.device == stayed.device == torch.device("cpu")
    indices = torch.arange(4)
    assert moved.batch(indices, Task.HARMFUL).labels.device == torch.device("meta")
    assert moved.digest == stayed.digest == data.digest
    assert torch.equal(stayed.batch(indices, Task.HARMFUL).labels, data.batch(indices, Task.HARMFUL).labels)


@pytest.mark.parametrize("name", [name for name in ATTACKED if name != "grouped labels"])
def test_no_text_is_in_two_splits(name: str, made: dict[str, Any]) -> None:
    shared = made[name].shared_texts()
    assert len(shared) == (0 if "vectors" in name else 6)
    assert not any(shared.values())


def test_vectors_have_real_targets() -> None:
    data: TrainingDataset = RegressionWorld(NUM_EXAMPLES, 0, input_dim=5)
    batch = data.batch(torch.arange(3), Task.DESIRED, pad_to=8)
    assert batch.inputs[0].shape == (3, 5)
    assert batch.labels.dtype == torch.float32
    assert data.num_classes(Task.DESIRED) == 1
