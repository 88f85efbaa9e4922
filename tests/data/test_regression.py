"""The regression world: what its labels are, that a seed settles it, and that its splits are four."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdm_ray.core.types import Split, Task
from sdm_ray.data.regression import RegressionWorld


def everything(world: RegressionWorld, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    batch = world.batch(torch.arange(len(world)), task)
    return batch.inputs[0], batch.labels


def test_labels_are_linear_in_gaussian_inputs_with_unit_variance_and_differ_between_tasks() -> None:
    world = RegressionWorld(4000, 3, dtype=torch.float64)
    inputs, desired = everything(world, Task.DESIRED)
    _, harmful = everything(world, Task.HARMFUL)
    assert inputs.shape == (4000, 25)
    torch.testing.assert_close(inputs.T @ inputs / 4000, torch.eye(25).double(), atol=0.1, rtol=0)
    found = torch.linalg.lstsq(inputs[:100], torch.stack([desired, harmful], dim=1)[:100]).solution
    torch.testing.assert_close(inputs @ found, torch.stack([desired, harmful], dim=1), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.norm(dim=0), torch.ones(2).double(), atol=1e-9, rtol=0)
    assert abs(float(found[:, 0] @ found[:, 1])) < 0.6, "the tasks would be almost one"


def test_a_seed_settles_the_world_and_global_random_state_is_not_used() -> None:
    state = torch.random.get_rng_state()
    one, same, other = RegressionWorld(50, 1), RegressionWorld(50, 1), RegressionWorld(50, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.digest == same.digest
    for task in Task:
        assert all(torch.equal(a, b) for a, b in zip(everything(one, task), everything(same, task), strict=True))
    assert one.digest != other.digest
    assert one.digest != RegressionWorld(50, 1, dtype=torch.float64).digest
    assert not torch.equal(everything(one, Task.HARMFUL)[0], everything(other, Task.HARMFUL)[0])


@pytest.mark.parametrize("num_examples", [10, 11, 97, 1000])
def test_splits_share_out_all_examples(num_examples: int) -> None:
    world = RegressionWorld(num_examples, 0)
    parts = [world.indices(split) for split in Split]
    assert all(len(part) for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(num_examples))
    assert abs(len(world.indices(Split.META_TRAIN)) - num_examples / 2) <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_examples": 9}, "num_examples is 9, but every split needs one: give at least 10"),
        ({"num_examples": 20, "input_dim": 1}, "input_dim is 1, but two labels need at least 2"),
    ],
)
def test_worlds_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegressionWorld(seed=0, **values)


@pytest.mark.gpu
def test_batches_on_cuda_do_not_wait_for_the_device() -> None:
    world = RegressionWorld(40, 0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = world.batch(torch.arange(8), Task.DESIRED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(batch.labels.cpu(), world.labels_host(Task.DESIRED)[:8])
