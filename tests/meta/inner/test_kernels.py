"""Compiled step functions give the gradients of the eager ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config

from sdm_ray.core.types import Batch
from sdm_ray.meta.inner.episode import Execution
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.loop import meta_gradients
from tests.fakes.meta import MlpTrunk, bert_trunk, episode_of, start_of

WEIGHTS = {"harmful_base": 0.3, "harmful_adapted_calibrated": 1.0, "adapted_grad_norm": 0.5}
KINDS: list[dict[str, Any]] = [
    {},
    {"adaptation": "partial", "depth": 1},
    {"adaptation": "lora", "rank": 2},
    {"head_kind": "attention"},
    {"head_kind": "max"},
]


@pytest.fixture(autouse=True)
def _plain_code() -> Iterator[None]:
    """The C++ compiler takes most of the time: half of it without vector instructions and without workers for it."""
    with torch._inductor.config.patch({"cpp.simdlen": 1, "compile_threads": 1}):
        yield


def assert_compiled_equals_eager(model: FlatModel, mode: str, **kind: Any) -> None:
    eager, compiled = (
        meta_gradients(
            model,
            start_of(model, num_classes=3 if kind.get("head_kind") == "attention" else 2),
            episode_of(mode=mode, truncation_steps=1, **kind),
            WEIGHTS,
            execution=Execution(compiled=flag),
        )
        for flag in (False, True)
    )
    for name in ("trunk", "head", "log_learning_rate"):
        torch.testing.assert_close(getattr(compiled, name), getattr(eager, name), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(compiled.values, eager.values)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_modes_equal_eager_ones() -> None:
    """One model serves all modes: each kernel is compiled once."""
    model = FlatModel(MlpTrunk())
    for mode in ("auto", "adjoint", "truncated", "first_order"):
        assert_compiled_equals_eager(model, mode)
    assert sum(key[0] == "kernels" for key in model.cache) == 1  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_compiled_encoders_equal_eager_ones(kind: dict[str, Any], bert_folder: Path) -> None:
    assert_compiled_equals_eager(FlatModel(bert_trunk(bert_folder)), "adjoint", **kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kernels_meet_more_shapes_than_torch_expects_of_a_function() -> None:
    model = FlatModel(MlpTrunk())
    for batch_size in range(2, 2 + torch._dynamo.config.recompile_limit + 1):
        inner = tuple(
            Batch(
                tuple(value[:, :1].repeat(1, batch_size, 1) for value in batch.inputs),
                batch.labels[:, :1].repeat(1, batch_size),
            )
            for batch in episode_of(mode="adjoint").data.inner
        )
        episode = episode_of(mode="adjoint")
        episode = episode._replace(data=episode.data._replace(inner=inner))
        found = meta_gradients(
            model, start_of(model), episode, {"harmful_adapted": 1.0}, execution=Execution(compiled=True)
        )
        assert found.trunk.isfinite().all()


def test_heads_and_dropout_are_not_compiled() -> None:
    model = FlatModel(MlpTrunk())
    assert_compiled_equals_eager(model, "adjoint", adaptation="head")
    assert not any(key[0] == "kernels" for key in model.cache)  # type: ignore[index]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["adjoint", "adjoint_stored", "first_order"])
@pytest.mark.parametrize("compiled", [False, True])
def test_episodes_on_a_gpu_agree_with_the_cpu_and_never_wait(mode: str, compiled: bool, bert_folder: Path) -> None:
    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().cuda().requires_grad_(value.requires_grad)
        if isinstance(value, tuple):
            parts = [moved(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    here = FlatModel(bert_trunk(bert_folder))
    there = FlatModel(bert_trunk(bert_folder).cuda())
    start, episode = start_of(here, count=2), episode_of(mode=mode, count=2)
    expected = meta_gradients(here, start, episode, WEIGHTS)
    remote = (moved(start), episode._replace(data=moved(episode.data)), WEIGHTS)
    meta_gradients(there, *remote, execution=Execution(compiled=compiled))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = meta_gradients(there, *remote, execution=Execution(compiled=compiled))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.trunk.cpu(), expected.trunk, rtol=1e-7, atol=1e-9)
