"""Readers of tokens vote: several of the search's points are run again, and one result is made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdm_ray.attack.engine.executor import Outcome
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.protocol import _vote, attack_model
from sdm_ray.attack.search import COMMITTEE
from sdm_ray.config import AttackSettings, TrialSettings
from sdm_ray.core.progress import Progress, run_through
from sdm_ray.trial.release import own_knowledge
from sdm_ray.trial.workspace import open_workspace, trunk_params
from tests.golden import worlds


def outcome(scores: list[list[float]], seconds: float) -> Outcome:
    attacker = Attacker(family="token_probe", num_examples=4, trains="probe", probe="token_probe")
    values = torch.tensor(scores)
    return Outcome(attacker, "ok", seconds, flops=1.0, val_logits=values, test_logits=values)


def test_a_vote_weighs_members_alike_whatever_their_scale() -> None:
    sure = [[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]
    other = [[0.0, 100.0], [0.0, 100.0], [100.0, 0.0]]
    found = _vote([outcome(sure, 1.0), outcome(sure, 1.0), outcome(other, 2.0)])
    assert found.test_logits is not None
    assert found.test_logits.argmax(1).tolist() == [0, 1, 0], "two against one"
    assert found.seconds == 4.0
    assert found.flops == 3.0
    shifted = [[a + 7.0, b + 7.0] for a, b in sure]
    again = _vote([outcome(shifted, 1.0), outcome(sure, 1.0), outcome(other, 2.0)])
    assert again.test_logits is not None
    assert torch.allclose(again.test_logits, found.test_logits)


@pytest.mark.parametrize(("alike", "members"), [(1.0, COMMITTEE), (0.0, 1)])
def test_one_record_a_seed_is_made_of_a_committee(
    alike: float, members: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that validation finds alike vote; where none is like the best, it is run again alone."""
    monkeypatch.setattr("sdm_ray.attack.search.ALIKE", alike)
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
