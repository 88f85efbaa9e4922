"""Batches from the device: the right rows, as narrow as they may be, without waiting for the device."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sdm_ray.config import DataSettings, EncoderSettings
from sdm_ray.core.types import Split, Task
from sdm_ray.data.device import DeviceData
from sdm_ray.data.splits import SPLITS
from sdm_ray.data.tokenized import TokenizedData, power_of_two, prepare
from sdm_ray.models.encoder import load_tokenizer
from tests.fakes import files as helpers


@pytest.fixture(scope="module")
def tokenized(encoder_folder: Path, data_file: Path) -> TokenizedData:
    tokenizer = load_tokenizer(EncoderSettings(name=str(encoder_folder)), cache_dir=encoder_folder)
    settings = DataSettings(source=str(data_file), max_length=24)
    data = prepare(settings, tokenizer, "t", encoder_folder / "cache")
    # Widen the spread of lengths: 5, 9 and 13 tokens, in a table that is 16 wide.
    lengths = np.array([5, 9, 13])[np.arange(len(data.lengths)) % 3]
    ids = np.where(np.arange(16) < lengths[:, None], data.input_ids, data.pad_id)
    return TokenizedData(**{**vars(data), "lengths": lengths, "input_ids": ids})


@pytest.fixture(scope="module")
def data(tokenized: TokenizedData) -> DeviceData:
    return DeviceData(tokenized, "cpu")


def test_host_side(data: DeviceData, tokenized: TokenizedData) -> None:
    assert len(data) == 240
    assert data.width == 16
    assert data.max_id == tokenized.input_ids.max()
    assert data.digest == tokenized.digest
    assert data.device == torch.device("cpu")
    assert (data.num_classes(Task.DESIRED), data.num_classes(Task.HARMFUL)) == (3, 2)
    assert data.label_names(Task.HARMFUL) == ("f", "m")
    assert data.labels_host(Task.DESIRED).tolist() == tokenized.desired.tolist()
    assert data.lengths_host().tolist() == tokenized.lengths.tolist()


def test_splits_are_sorted_disjoint_and_complete(data: DeviceData, tokenized: TokenizedData) -> None:
    parts = [data.indices(split) for split in Split]
    for split, part in zip(Split, parts, strict=True):
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())
        assert (tokenized.split[part.numpy()] == SPLITS.index(split)).all()
    assert sorted(torch.cat(parts).tolist()) == list(range(240))


@pytest.mark.parametrize(("rows", "width"), [([0, 3, 6], 8), ([0, 1], 16), ([1], 16), ([2, 0], 16)])
def test_batch_is_gathered_and_trimmed_to_a_multiple_of_8(
    rows: list[int], width: int, data: DeviceData, tokenized: TokenizedData
) -> None:
    for task in Task:
        batch = data.batch(torch.tensor(rows), task)
        assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.labels.dtype == torch.int64
        assert batch.input_ids.tolist() == tokenized.input_ids[rows, :width].tolist()
        assert batch.attention_mask.sum(-1).tolist() == tokenized.lengths[rows].tolist()
        assert (batch.attention_mask.diff(dim=-1) <= 0).all()
        assert batch.labels.tolist() == tokenized.labels(task)[rows].tolist()


def test_coarse_widths_are_powers_of_two_as_far_as_the_data_go(data: DeviceData) -> None:
    for longest in (3, 8, 9, 16):
        assert power_of_two(longest) == 2 ** math.ceil(math.log2(longest))
    fine, coarse = (data.batch(torch.tensor([0, 1]), Task.DESIRED, coarse=flag) for flag in (False, True))
    assert coarse.input_ids.shape == fine.input_ids.shape, "both end at 16, which is all that there is"


@pytest.mark.parametrize("width", [5, 8, 16, 30])
def test_pad_to_is_exact(width: int, data: DeviceData) -> None:
    batch = data.batch(torch.tensor([0, 3]), Task.DESIRED, pad_to=width)
    assert batch.input_ids.shape == (2, width)
    assert batch.attention_mask.sum(-1).tolist() == [5, 5]
    assert (batch.input_ids[:, 5:] == data.pad_id).all()


def test_pad_to_never_cuts_a_text(data: DeviceData) -> None:
    with pytest.raises(ValueError, match="pad_to is 8, but a text of the batch has 9 tokens"):
        data.batch(torch.tensor([0, 1]), Task.DESIRED, pad_to=8)


def test_no_value_is_read_from_the_device(data: DeviceData) -> None:
    with helpers.NoHostSync():
        for width in (None, 16, 30):
            data.batch(torch.arange(12).reshape(3, 4), Task.DESIRED, pad_to=width)


@pytest.mark.gpu
def test_batches_do_not_wait_for_the_device(tokenized: TokenizedData, data: DeviceData) -> None:
    on_gpu = DeviceData(tokenized, "cuda")
    indices = torch.arange(12).reshape(3, 4)
    on_gpu.batch(indices, Task.DESIRED)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [on_gpu.batch(indices, Task.DESIRED, pad_to=width) for width in (None, 16, 30)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, width in zip(batches, (None, 16, 30), strict=True):
        for got, want in zip(batch, data.batch(indices, Task.DESIRED, pad_to=width), strict=True):
            assert torch.equal(got.cpu(), want)
