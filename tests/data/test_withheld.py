"""Labels that training does not get: few desired labels, classes held out, labels of benign tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdm_ray.attack.findings.benign import benign_data
from sdm_ray.config import DataSettings, EncoderSettings, TrainSettings, override
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Split, Task
from sdm_ray.data.device import DeviceData
from sdm_ray.data.interface import UNLABELLED, labelled
from sdm_ray.data.splits import SPLITS
from sdm_ray.data.tokenized import TokenizedData, prepare
from sdm_ray.meta.trainer import Trainer
from sdm_ray.meta.validation import split_meta_train
from sdm_ray.models.encoder import load_tokenizer, load_trunk

META_TRAIN = SPLITS.index(Split.META_TRAIN)


@pytest.fixture(scope="module")
def tokenizer(encoder_folder: Path) -> Any:
    return load_tokenizer(EncoderSettings(name=str(encoder_folder)), cache_dir=encoder_folder)


def prepared(settings: DataSettings, tokenizer: Any, folder: Path, **changes: Any) -> TokenizedData:
    return prepare(override(settings, changes), tokenizer, "t", folder)


def test_a_number_of_desired_labels(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    everything = prepared(data_settings, tokenizer, tmp_path)
    few = prepared(data_settings, tokenizer, tmp_path, desired_labels=5)
    trained = few.split == META_TRAIN
    assert (few.desired[trained] != UNLABELLED).sum() == 5
    assert set(few.desired[trained & (few.desired != UNLABELLED)]) == {0, 1, 2}
    kept = few.desired != UNLABELLED
    assert np.array_equal(few.desired[kept], everything.desired[kept])
    assert kept[~trained].all()
    assert np.array_equal(few.harmful, everything.harmful)
    assert few.digest != everything.digest
    more = prepared(data_settings, tokenizer, tmp_path, desired_labels=9)
    assert (more.desired[trained] != UNLABELLED)[few.desired[trained] != UNLABELLED].all()  # fewer are among more


@pytest.mark.parametrize("wanted", [2, 10_000])
def test_a_number_of_labels_that_cannot_be(
    wanted: int, data_settings: DataSettings, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"^data\.desired_labels is {wanted}: .*\(3\).*meta-training texts \(\d+\)"):
        prepared(data_settings, tokenizer, tmp_path, desired_labels=wanted)


@pytest.mark.parametrize("wanted", [["otto", "lena"], 2])
def test_held_out_classes(wanted: Any, data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    source = data_settings.model_copy(update={"desired_column": "name"})
    everything = prepared(source, tokenizer, tmp_path)
    names = everything.desired_labels
    held = ["otto", "lena"] if isinstance(wanted, list) else 2
    less = prepared(source, tokenizer, tmp_path, benign_classes=held)
    out = [name for name in names if name not in less.desired_labels]
    assert len(out) == 2
    assert len(less.desired_labels) == len(names) - 2
    assert (less.desired[less.split == META_TRAIN] != UNLABELLED).all()
    assert less.benign["held_out"].names == tuple(out)
    in_training = sum(names[code] in out for code in everything.desired[everything.split == META_TRAIN])
    assert in_training
    assert len(less.desired) == len(everything.desired) - in_training
    codes, benign = less.desired, less.benign["held_out"].codes
    assert ((codes == UNLABELLED) == (benign != UNLABELLED)).all()
    test = less.split == SPLITS.index(Split.TEST)
    assert (benign[test] != UNLABELLED).any()
    again = prepared(source, tokenizer, tmp_path, benign_classes=held)  # from the cache
    assert again.digest == less.digest
    assert np.array_equal(again.benign["held_out"].codes, benign)
    assert again.benign["held_out"].names == less.benign["held_out"].names


def test_held_out_classes_that_cannot_be(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^data\.benign_classes is 2, of the 3 desired classes: .*at least 2"):
        prepared(data_settings, tokenizer, tmp_path, benign_classes=2)
    with pytest.raises(UsageError, match=r"no class 'otta'; did you mean 'otto'"):
        prepared(
            data_settings.model_copy(update={"desired_column": "name"}),
            tokenizer,
            tmp_path,
            benign_classes=["otta", "lena"],
        )


def test_benign_columns(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    plain = prepared(data_settings, tokenizer, tmp_path)
    with_places = prepared(data_settings, tokenizer, tmp_path, benign_columns=["name"])
    assert plain.benign == {}
    assert with_places.digest != plain.digest
    data = DeviceData(with_places, "cpu")
    tasks = benign_data(data, 2)
    assert list(tasks) == ["desired", "grouped", "name"]
    places = tasks["name"]
    assert places.num_classes(Task.DESIRED) == len(with_places.benign["name"].names)
    rows = places.indices(Split.TEST)
    assert torch.equal(places.batch(rows, Task.DESIRED).labels, places.labels_host(Task.DESIRED)[rows])
    with pytest.raises(UsageError, match=r"^data\.benign_columns\.0: .* has no column 'nam'.*'name'"):
        prepared(data_settings, tokenizer, tmp_path, benign_columns=["nam"])
    with pytest.raises(UsageError, match=r"^data\.benign_columns: a column must have one use"):
        prepared(data_settings, tokenizer, tmp_path, benign_columns=["gender"])


def test_a_synthetic_world_without_a_benign_task(tmp_path: Path, tokenizer: Any) -> None:
    settings = DataSettings(synthetic={"version": 1, "num_examples": 400}, benign_columns=("origin",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"version 1 of the synthetic world has no column 'origin'"):
        prepare(settings, tokenizer, "t", tmp_path)


def test_benign_data_leave_unlabelled_examples_out(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    source = data_settings.model_copy(update={"desired_column": "name"})
    data = DeviceData(prepared(source, tokenizer, tmp_path, benign_classes=["otto", "lena"]), "cpu")
    tasks = benign_data(data, 2)
    desired, held = (set(tasks[name].indices(Split.TEST).tolist()) for name in ("desired", "held_out"))
    assert desired
    assert held
    assert not desired & held
    assert desired | held == set(data.indices(Split.TEST).tolist())
    assert set(labelled(data, data.indices(Split.TEST), Task.DESIRED).tolist()) == desired
    for name in tasks:
        assert (tasks[name].labels_host(Task.DESIRED)[tasks[name].indices(Split.ATTACKER_TRAIN)] >= 0).all()


@pytest.mark.parametrize("method", ["tuned", "pretrained", "mlac"])
def test_every_method_trains_on_the_labels_that_are_left(
    method: Any, data_settings: DataSettings, tokenizer: Any, encoder_folder: Path, tmp_path: Path
) -> None:
    data = DeviceData(prepared(data_settings, tokenizer, tmp_path, desired_labels=4), "cpu")
    trunk = load_trunk(EncoderSettings(name=str(encoder_folder)), cache_dir=tmp_path)
    asked: list[torch.Tensor] = []
    batch = data.batch

    def watching(indices: torch.Tensor, task: Task, **options: Any) -> Any:
        if task is Task.DESIRED:
            asked.append(indices.flatten())
        return batch(indices, task, **options)

    data.batch = watching  # type: ignore[method-assign]
    settings = TrainSettings(method=method, num_outer_steps=2, desired_batch_size=4)
    for _ in Trainer(settings, trunk=trunk, data=data, seed=0).iterate():
        pass
    seen = torch.cat(asked)
    assert len(seen)
    assert (data.labels_host(Task.DESIRED)[seen] != UNLABELLED).all()


def test_validation_without_a_labelled_example(data_settings: DataSettings, tokenizer: Any, tmp_path: Path) -> None:
    data = DeviceData(prepared(data_settings, tokenizer, tmp_path, desired_labels=3), "cpu")
    settings = TrainSettings(validation={"every_steps": 1, "fraction": 0.02})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has no desired label; raise data\.desired_labels"):
        split_meta_train(data, settings)


def test_settings_at_their_defaults_keep_digests() -> None:
    settings = DataSettings()
    assert not {"desired_labels", "benign_classes", "benign_columns"} & settings.identity().keys()
    changed = override(settings, {"desired_labels": 100})
    assert changed.identity()["desired_labels"] == 100
    assert "desired_labels" in settings.model_dump()
