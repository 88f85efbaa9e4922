"""The sampler: every index once an epoch, another order each time, and an exact resume from any point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sdm_ray.data.sampler import EpochSampler


def make(num: int = 10, size: int = 4, seed: int = 0) -> EpochSampler:
    return EpochSampler(torch.arange(100, 100 + num), size, torch.Generator().manual_seed(seed))


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_every_index_once_an_epoch_in_batches_of_full_size(num: int, size: int, seed: int) -> None:
    sampler = make(num, size, seed)
    batches = [sampler.next() for _ in range(num)]  # `size` epochs
    assert all(batch.shape == (size,) and batch.dtype == torch.int64 for batch in batches)
    for epoch in torch.cat(batches).reshape(size, num):
        assert sorted(epoch.tolist()) == list(range(100, 100 + num))


def test_orders_differ_between_epochs_and_seeds() -> None:
    sampler = make(50, 50)
    first, second = sampler.next(), sampler.next()
    assert not torch.equal(first, second)
    assert torch.equal(first, make(50, 50).next())
    assert not torch.equal(first, make(50, 50, seed=1).next())


def test_the_indices_are_the_sampler_s_own() -> None:
    indices = torch.arange(4)
    sampler = EpochSampler(indices, 4, torch.Generator().manual_seed(0))
    indices.zero_()
    sampler.next()
    assert sorted(sampler.next().tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 10])
def test_resume_is_exact_through_a_file(steps: int, tmp_path: Path) -> None:
    sampler = make()
    for _ in range(steps):
        sampler.next()
    save_file(sampler.state_dict(), tmp_path / "state.safetensors")
    expected = [sampler.next(size) for size in (4, 7, 4, 25, 4)]
    resumed = make(seed=99)
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(resumed.next(size), want) for size, want in zip((4, 7, 4, 25, 4), expected, strict=True))


def test_a_state_does_not_change_afterwards() -> None:
    sampler = make()
    state = sampler.state_dict()
    first = [sampler.next() for _ in range(5)]
    sampler.load_state_dict(state)
    assert all(torch.equal(sampler.next(), want) for want in first)


def test_a_state_over_other_indices_is_refused() -> None:
    with pytest.raises(ValueError, match="orders 10 indices that are not this sampler's 12"):
        make(12).load_state_dict(make(10).state_dict())


def test_nothing_to_sample() -> None:
    with pytest.raises(ValueError, match="at least one index"):
        make(0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make(size=0)
