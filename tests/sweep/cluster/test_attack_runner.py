"""Fine-tunes of an attack in worker processes: the same outcomes, and a worker that dies costs a retry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.config import ResourceSettings
from sdm_ray.core.types import Params, Task
from sdm_ray.sweep.cluster.attack_runner import RayRunner, Target, ray_runner
from tests.fakes.attack_world import FakeData, TinyTrunk, attack, quick

RESOURCES = ResourceSettings(cpus_per_trial=1)


class DyingData(FakeData):
    """The first worker that asks for a subset's labels dies of it; the file remembers that one did."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        if os.environ.get("SDM_RAY_TEST_WORKER") and not self.marker.exists():
            self.marker.write_text("died")
            os._exit(1)
        return super().batch(*args, **kwargs)


pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_workers_give_what_one_process_gives() -> None:
    settings = quick(families=("fine_tune", "linear_probe"), num_examples=(20,))
    here = attack(FakeData(), settings)
    there = attack(FakeData(), settings, runner=ray_runner(RESOURCES, 2))
    for mine, theirs in zip(here.family_cells, there.family_cells, strict=True):
        assert mine.winner == theirs.winner
        assert mine.seed_losses == pytest.approx(theirs.seed_losses, abs=1e-5)
    assert len(there.records) == len(here.records)


@pytest.mark.slow
def test_a_worker_that_dies_costs_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    class Mortal:
        """`AttackWorker` in a process that knows that it is one."""

        def __init__(self, target: Target, num_threads: int) -> None:
            from sdm_ray.sweep.cluster.attack_runner import AttackWorker

            self._inner = AttackWorker(target, num_threads)
            os.environ["SDM_RAY_TEST_WORKER"] = "1"

        def run(self, attackers: Any, with_test: bool) -> Any:
            return self._inner.run(attackers, with_test)

    assert ray.is_initialized()
    monkeypatch.setattr("sdm_ray.sweep.cluster.attack_runner.AttackWorker", Mortal)

    def make(trunk: TinyTrunk, params: Params, data: Any, settings: Any, task: Task, knowledge: Any) -> RayRunner:
        return RayRunner(Target(trunk, params, data, settings, task, knowledge), RESOURCES, 1)

    report = attack(DyingData(tmp_path / "marker"), quick(num_examples=(20,), frozen_probability=0.0), runner=make)
    crashed = [record for record in report.records if record.status == "crashed"]
    assert (tmp_path / "marker").exists()
    assert crashed
    assert all(record.attempt == 0 for record in crashed)
    assert report.cells[0].valid
    assert report.cells[0].num_missing == 0
