"""The gradient mode `auto` keeps graphs where they fit, and running out of memory falls back, not over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdm_ray.core.errors import RunError
from sdm_ray.meta.inner import memory
from sdm_ray.meta.inner.episode import Execution
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.loop import meta_gradients
from sdm_ray.meta.inner.memory import ModeChooser, free_bytes, saved_bytes
from tests.fakes.meta import MlpTrunk, episode_of, start_of

WEIGHTS = {"harmful_adapted_calibrated": 1.0}


def exhausted() -> RuntimeError:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: not enough memory: you tried to")


@pytest.mark.parametrize(
    ("needed", "free", "expected"),
    [(49, 100, "adjoint_stored"), (51, 100, "adjoint"), (10**15, None, "adjoint_stored")],
)
def test_auto_keeps_graphs_where_they_fit(
    needed: int, free: int | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert ModeChooser().run("auto", lambda: needed, lambda mode: mode) == expected


def test_other_modes_are_taken_as_they_are_and_nothing_is_measured() -> None:
    def measure() -> int:
        raise AssertionError("measured")

    for mode in ("unrolled", "adjoint", "adjoint_stored", "truncated", "first_order"):
        assert ModeChooser().run(mode, measure, lambda chosen: chosen) == mode


def test_each_shape_is_measured_once() -> None:
    chooser, calls = ModeChooser(), []
    for key in ("a", "b", "a", "b"):
        chooser.run("auto", lambda key=key: calls.append(key) or 0, lambda mode: mode, key=key)  # type: ignore[misc]
    assert calls == ["a", "b"]


@pytest.mark.parametrize("error", [exhausted(), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
@pytest.mark.parametrize("mode", ["auto", "adjoint_stored", "unrolled"])
def test_running_out_of_memory_goes_on_without_keeping(
    mode: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    chooser, tried = ModeChooser(), []

    def work(chosen: str) -> str:
        tried.append(chosen)
        if chosen in ("adjoint_stored", "unrolled"):
            raise error
        return chosen

    assert chooser.run(mode, lambda: 0, work) == "adjoint"
    assert "ran out of memory" in caplog.text
    assert chooser.run("auto", lambda: 0, work) == "adjoint"
    assert tried.count("adjoint") == 2
    assert len(tried) == 3, "what ran out once is not tried again"


def test_where_nothing_fits_the_sentence_says_what_to_lower() -> None:
    def work(mode: str) -> None:
        raise exhausted()

    with pytest.raises(RunError, match=r"does not fit .* lower train\.adversary\.batch_sizes"):
        ModeChooser().run("auto", lambda: 0, work)


def test_other_errors_are_passed_on() -> None:
    def work(mode: str) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        ModeChooser().run("adjoint_stored", lambda: 0, work)


def test_saved_bytes_count_each_storage_once() -> None:
    x = torch.randn(10, dtype=torch.float64, requires_grad=True)
    y = torch.randn(10, dtype=torch.float64)
    assert saved_bytes(lambda: x * y) == 80  # y; x is not needed, for y takes no gradient
    assert saved_bytes(lambda: (x * x) * 2.0) == 80  # x twice, in one storage
    assert saved_bytes(lambda: x * y, known=(y,)) == 0


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system has no /proc/meminfo")
def test_free_memory_is_told_on_linux() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50


@pytest.mark.parametrize("free", [1, 2**40])
def test_an_episode_chooses_by_what_it_measures(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice changes nothing but time and memory."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    model, seen = FlatModel(MlpTrunk()), []
    chooser = ModeChooser()
    original = chooser.run

    def run(mode: str, measure: Any, work: Any, *, key: object = None) -> Any:
        return original(mode, measure, lambda chosen: (seen.append(chosen), work(chosen))[1], key=key)

    monkeypatch.setattr(chooser, "run", run)
    found = meta_gradients(model, start_of(model), episode_of(mode="auto"), WEIGHTS, execution=Execution(chooser))
    assert seen == (["adjoint"] if free == 1 else ["adjoint_stored"])
    expected = meta_gradients(model, start_of(model), episode_of(mode="adjoint"), WEIGHTS)
    assert torch.equal(found.trunk, expected.trunk)
