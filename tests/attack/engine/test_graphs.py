"""Recorded steps train as plain ones do, few are recorded, and one that goes wrong is not used."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import sdm_ray.attack.engine.stack as batch_module
from sdm_ray.attack.engine import graphs
from sdm_ray.attack.engine.graphs import Recorder, Replaying, Step, record_cuda
from tests.attack.engine.test_stack import prepared


def recorder_of(log: list[tuple[Any, ...]]) -> Recorder:
    """As a CUDA graph behaves: inputs are copied into its buffers, results are overwritten by the next call."""

    def record(step: Step, inputs: tuple[Tensor, ...]) -> Step:
        log.append(tuple(value.shape for value in inputs))
        held, results = tuple(value.clone() for value in inputs), tuple(value.clone() for value in step(*inputs))

        def replay(*values: Tensor) -> tuple[Tensor, ...]:
            for buffer, value in zip(held, values, strict=True):
                buffer.copy_(value)
            for result, value in zip(results, step(*held), strict=True):
                result.copy_(value)
            return results

        return replay

    return record


@pytest.fixture(autouse=True)
def forget_warnings() -> None:
    graphs._warn_once.cache_clear()


@pytest.mark.parametrize("trains", ["full", "head"])
def test_recorded_steps_train_as_plain_ones(trains: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, executor, plan = prepared("bert", trains=trains)

    def ends() -> tuple[Tensor, ...]:
        if trains == "head":
            heads, curves = executor.frozen.train_heads(plan)
            return heads, curves.losses
        trained, curves = executor.train(plan)
        return (*trained.params(slice(None))[0].values(), curves.losses)

    wanted, log = ends(), list[tuple[Any, ...]]()
    monkeypatch.setitem(batch_module.RECORDERS, "cpu", recorder_of(log))
    monkeypatch.setitem(batch_module.STEPS_PER_TRANSFER, "cpu", 32)
    monkeypatch.setitem(batch_module.STACK_SIZES, "cpu", 2)
    for found, value in zip(ends(), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-10)
    assert 1 <= len(log) <= 4
    assert len(log) == len(set(log)), "a shape is recorded once"


def test_a_stack_shrinks_to_few_sizes() -> None:
    _, _, _, plan = prepared("tiny")
    assert [plan.held(active, 0) for active in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [plan.held(active, 2) for active in (1, 2, 3, 4)] == [2, 2, 4, 4]
    last = plan.indices(18, 20, 4)[:, 3]
    assert torch.equal(last, plan.subsets[3][plan.orders[3][-1]].expand(2, -1)), "finished: stays at its last step"


def test_a_step_is_recorded_when_its_shapes_recur() -> None:
    log: list[tuple[Any, ...]] = []
    replaying = Replaying(recorder_of(log))
    for kind, size in ((1, 3), (1, 4), (2, 3), (1, 3), (1, 3), (1, 3)):
        value = torch.arange(float(size))
        assert torch.equal(replaying(kind, lambda x: (x + 1,), value)[0], value + 1)
    assert log == [(torch.Size([3]),)]


def test_a_step_that_cannot_be_recorded_runs_plainly_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def record(step: Step, inputs: tuple[Tensor, ...]) -> Step:
        raise RuntimeError("operation not permitted when stream is capturing")

    replaying = Replaying(record)
    with caplog.at_level(logging.WARNING):
        results = [replaying(1, lambda x: (x + 1,), torch.zeros(2))[0] for _ in range(4)]
    assert all(torch.equal(result, torch.ones(2)) for result in results)
    assert [record.message for record in caplog.records] == [
        "attack steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("wrong", [1.5, float("nan")])
def test_a_recorded_step_that_gives_other_results_is_not_used(wrong: float, caplog: pytest.LogCaptureFixture) -> None:
    replaying = Replaying(lambda step, inputs: lambda *values: (torch.full((2,), wrong),))
    results = [replaying(1, lambda x: (x + 1,), torch.zeros(2))[0] for _ in range(4)]
    assert all(torch.equal(result, torch.ones(2)) for result in results)
    assert "gave other results" in caplog.text


def test_a_lack_of_memory_is_left_to_the_caller_who_halves_the_stack() -> None:
    def record(step: Step, inputs: tuple[Tensor, ...]) -> Step:
        raise torch.OutOfMemoryError("CUDA out of memory")

    replaying = Replaying(record)
    replaying(1, lambda x: (x + 1,), torch.zeros(2))
    with pytest.raises(torch.OutOfMemoryError):
        replaying(1, lambda x: (x + 1,), torch.zeros(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_gives_what_the_step_gives() -> None:
    weight = torch.randn(8, 4, device="cuda", requires_grad=True)

    def step(inputs: Tensor) -> tuple[Tensor, ...]:
        loss = (inputs @ weight).square().mean()
        return loss.detach(), *torch.autograd.grad(loss, [weight])

    replay = record_cuda(step, (torch.randn(5, 8, device="cuda"),))
    for _ in range(3):
        inputs = torch.randn(5, 8, device="cuda")
        with torch.no_grad():
            weight.add_(0.1)  # read from where it lies
        for found, wanted in zip(replay(inputs), step(inputs), strict=True):
            torch.testing.assert_close(found, wanted)
