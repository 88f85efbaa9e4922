"""Cache entries that machines share: data, encoders and floors are built once, and nothing depends on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdm_ray.attack.report import AttackReport
from sdm_ray.config import DataSettings, EncoderSettings
from sdm_ray.config.data import SyntheticWorld
from sdm_ray.core.cache import Files, fetch, offer
from sdm_ray.core.errors import RunError
from sdm_ray.data import tokenized
from sdm_ray.data.synthetic import pretraining_texts
from sdm_ray.data.tokenized import prepare
from sdm_ray.models import builtin, pretrain
from sdm_ray.models.encoder import load_tokenizer
from sdm_ray.models.pretrain_settings import PretrainSettings
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.trial.floors import load_report, store_report
from tests.attack.test_report import report  # noqa: F401  (a fixture)
from tests.fakes import sweep as sweep_fakes


class Memory:
    """A shared cache in this process; its entries are what a reader of the object store gets."""

    def __init__(self) -> None:
        self.entries: dict[str, Files] = {}

    def has(self, name: str) -> bool:
        return name in self.entries

    def take(self, name: str) -> Files | None:
        return self.entries.get(name)

    def give(self, name: str, files: Files) -> None:
        for content in files.values():
            content.flags.writeable = False
        self.entries[name] = files


@pytest.fixture
def memory() -> Memory:
    return Memory()


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("built again")


def test_data_are_tokenised_once(
    data_file: Path, encoder_folder: Path, tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DataSettings(source=str(data_file), max_length=24)
    tokenizer = load_tokenizer(EncoderSettings(name=str(encoder_folder)), cache_dir=tmp_path)
    first = prepare(settings, tokenizer, "t", tmp_path / "node1", memory)
    assert len(memory.entries) == 1
    monkeypatch.setattr(tokenized, "tokenize", refuse)
    second = prepare(settings, tokenizer, "t", tmp_path / "node2", memory)
    assert second.digest == first.digest
    np.testing.assert_array_equal(second.input_ids, first.input_ids)
    memory.entries.clear()
    prepare(settings, tokenizer, "t", tmp_path / "node2", memory)
    assert len(memory.entries) == 1, "what was there before is offered too"


def test_a_damaged_entry_is_built_again(data_file: Path, encoder_folder: Path, tmp_path: Path, memory: Memory) -> None:
    settings = DataSettings(source=str(data_file), max_length=24)
    tokenizer = load_tokenizer(EncoderSettings(name=str(encoder_folder)), cache_dir=tmp_path)
    first = prepare(settings, tokenizer, "t", tmp_path / "node1", memory)
    ((name, files),) = memory.entries.items()
    memory.entries[name] = {path: content[:-50] for path, content in files.items()}
    assert prepare(settings, tokenizer, "t", tmp_path / "node2", memory).digest == first.digest


def test_encoders_are_pretrained_once(tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    world = SyntheticWorld(version=1, seed=5, num_examples=400)
    tiny = PretrainSettings(num_steps=2, batch_size=8)
    texts = pretraining_texts(world)[:50]
    monkeypatch.setattr(pretrain, "pretraining_texts", lambda world: texts)
    first = builtin.builtin_folder(world, cache_dir=tmp_path / "node1", settings=tiny, shared=memory)
    monkeypatch.setattr(builtin, "pretrain_builtin", refuse)
    second = builtin.builtin_folder(world, cache_dir=tmp_path / "node2", settings=tiny, shared=memory)
    assert second.is_relative_to(tmp_path / "node2")
    assert builtin.recorded_hash(second) == builtin.recorded_hash(first)
    for path in first.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes()
    assert list(memory.entries[first.name])[-1].endswith(builtin.RECORD_FILE), "the file that makes it count"


def test_floors_are_attacked_once(report: AttackReport, tmp_path: Path, memory: Memory) -> None:  # noqa: F811
    store_report("key", tmp_path / "node1", report, memory)
    assert repr(load_report("key", tmp_path / "node2", memory)) == repr(report)
    assert load_report("other", tmp_path / "node2", memory) is None
    damaged = next((tmp_path / "node2" / "floors").iterdir())
    damaged.write_text("{")
    assert repr(load_report("key", tmp_path / "node2", memory)) == repr(report)


@pytest.mark.parametrize("path", ["../outside.json", "/tmp/outside.json", "floors/../../outside.json"])
def test_an_entry_cannot_leave_the_folder(path: str, tmp_path: Path, memory: Memory) -> None:
    memory.entries["bad"] = {path: np.zeros(1, np.uint8)}
    with pytest.raises(RunError, match=r"'bad' names .* outside the cache folder"):
        fetch(tmp_path / "cache", "bad", memory)
    assert not list(tmp_path.rglob("outside.json"))


def test_nothing_is_shared_by_default(tmp_path: Path) -> None:
    assert not fetch(tmp_path, "any", None)
    offer(tmp_path, "any", [tmp_path / "missing"], None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("where", "address", "builds"), [("ray_cluster", "auto", 1), ("in_process", None, 7)])
def test_nodes_share_through_the_object_store(
    tmp_path: Path, where: str, address: str | None, builds: int, request: pytest.FixtureRequest
) -> None:
    """Four references and three points, each with a cache folder of its own, as on nodes that share no disk.

    A local sweep shares nothing.
    """
    request.getfixturevalue(where)
    settings = sweep_fakes.settings(
        tmp_path,
        search__num_trials=3,
        resources__max_concurrent_trials=1,
        **({"resources__ray_address": address} if address else {}),
    )
    outcome = run_sweep(settings, trial_function="tests.fakes.sweep:cached", view=SilentView())
    assert not outcome.failures
    folders = [result.output_dir for result in outcome.results]
    assert sum(len(sweep_fakes.events(folder, "built")) for folder in folders) == builds
    contents = {(folder / "cache" / "floor.json").read_text() for folder in folders}
    assert len(contents) == builds


def test_a_shared_cache_that_is_gone_costs_nothing_but_the_work(tmp_path: Path, ray_cluster: None) -> None:
    import ray

    from sdm_ray.sweep.cluster.object_store import join, shared_caches

    with shared_caches("index"):
        shared = join("index")
        assert shared is not None
        assert shared == join("index"), "trials that share a process find the data of the one before"
        (tmp_path / "a.json").write_text("1")
        offer(tmp_path, "a", [tmp_path / "a.json"], shared)
        assert fetch(tmp_path / "other", "a", shared)
        assert (tmp_path / "other" / "a.json").read_text() == "1"
        ray.kill(ray.get_actor("index"))
        deadline = time.monotonic() + 60
        while fetch(tmp_path / "third", "a", shared) and time.monotonic() < deadline:  # a killed actor may still answer
            time.sleep(0.1)
        assert not fetch(tmp_path / "fourth", "a", shared)
        offer(tmp_path, "b", [tmp_path / "a.json"], shared)
    assert join("index") is None
