"""Readers of tokens vote: several of the search's points are run again, and one result is made of them."""

from __future__ import annotations

from typing import Any

import pytest

from sdm_ray.attack.protocol import attack_model
from sdm_ray.config import AttackSettings, TrialSettings
from sdm_ray.core.progress import Progress, run_through
from sdm_ray.trial.release import own_knowledge
from sdm_ray.trial.workspace import open_workspace, trunk_params
from tests.golden import worlds


@pytest.mark.parametrize(("alike", "members"), [(1.0, 5), (0.0, 1)])
def test_one_record_a_seed_is_made_of_a_committee(
    alike: float, members: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that validation finds alike vote; where none is like the best, it is run again alone."""
    monkeypatch.setattr("sdm_ray.attack.search.ALIKE", alike)
    monkeypatch.setattr("sdm_ray.attack.search.COMMITTEE", 5)
    monkeypatch.chdir(worlds.write(tmp_path))
    settings: TrialSettings = worlds.trial(tmp_path, "bert")
    work = open_workspace(settings)
    trunk = work.trunk(settings.encoder, "pretrained", 0)
    attack = AttackSettings(
        families=("token_probe",), num_examples=(8,), num_probe_trials=8, num_rerun_seeds=3, num_curve_points=0
    )
    runs: list[int] = []

    class Counting:
        def __init__(self, *arguments: Any) -> None:
            from sdm_ray.attack.engine.executor import Executor

            self.executor = Executor(*arguments)

        def run(self, attackers: Any, *, with_test: bool) -> Any:
            runs.append(len(attackers) if with_test else 0)
            return self.executor.run(attackers, with_test=with_test)

        def close(self) -> None:
            pass

    seen: list[Progress] = []
    generator = attack_model(
        trunk, trunk_params(trunk), work.data, attack, knowledge=own_knowledge(trunk), runner=Counting
    )
    report = run_through(generator, seen.append)
    assert all(step.done <= step.total for step in seen), "every member of a committee counts"
    assert seen[-1].done == seen[-1].total
    assert sum(runs) == members * 3
    reruns = [record for record in report.records if record.phase == "rerun"]
    assert [record.seed_index for record in reruns] == [0, 1, 2]
    assert report.cells[0].valid
    assert len([record for record in report.records if record.phase == "search"]) == 8 * 2, "two seeds a point"
    losses = [sum(r.val_loss for r in report.records if r.phase == "search" and r.trial == trial) for trial in range(8)]
    assert report.cells[0].winner is not None
    assert report.cells[0].winner.trial == losses.index(min(losses)), "the surest reader leads"
