"""What needs the public encoder is reported apart from the worst case, and says nothing about blocking."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.families import Attacker
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.protocol import AttackReport
from sdm_ray.cli.tables import walking_back
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.types import Task
from tests.attack.test_planted import NameData, bert, run
from tests.fakes.attack_world import params_of, quick

BUDGET: dict[str, Any] = {
    "num_examples": (40,), "num_search_trials": 3, "num_rerun_seeds": 2, "num_steps_min": 20, "num_steps_max": 30,
    "optimizers": ("adam",), "learning_rate": {"low": 1e-3, "high": 5e-3},
}  # fmt: skip


def test_a_graft_of_the_public_embedding_does_not_count_as_an_attack() -> None:
    report = run(
        bert(knows=False), ("graft", "interpolate", "knn"), knowledge=Knowledge(public=params_of(bert())), **BUDGET
    )
    (cell,), (back,) = report.cells, report.walking_back
    assert cell.family == "knn"
    assert back.family in ("graft", "interpolate")
    assert back.accuracy > cell.accuracy + 0.2
    assert report.metrics()[str(Metric.HARMFUL_WORST_ACCURACY)] == cell.accuracy
    assert {other.family for other in report.family_cells} == {"graft", "interpolate", "knn"}
    assert f"{back.accuracy:.3f} by {back.family} (n = 40)" in walking_back(report)


def test_reports_keep_it_and_those_of_before_are_read_without() -> None:
    report = run(bert(), ("interpolate", "knn"), knowledge=Knowledge(public=params_of(bert())), **BUDGET)
    plain = report.to_json()
    assert repr(AttackReport.from_json(plain).walking_back) == repr(report.walking_back)
    del plain["walking_back"]
    for record in plain["records"]:
        del record["amounts"]
    old = AttackReport.from_json(plain)
    assert old.walking_back == ()
    assert math.isclose(old.worst_accuracy, report.worst_accuracy)


def test_walking_back_alone_is_no_attack() -> None:
    with pytest.raises(UsageError, match="interpolate need the public encoder and are reported apart"):
        run(bert(), ("interpolate",), knowledge=Knowledge(public=params_of(bert())), **BUDGET)


@pytest.mark.parametrize("amount", [1.0, -1.0])
def test_a_graft_takes_each_block_from_one_side(amount: float) -> None:
    trunk, public = bert(knows=False), params_of(bert(pooler=2.0))
    released = params_of(trunk)
    executor = Executor(trunk, released, NameData(), quick(), Task.HARMFUL, Knowledge(public=public))
    attacker = Attacker(family="graft", num_examples=40, edit="graft", amount=amount)
    edited = executor.editor.edited(attacker)
    for name, value in edited.items():
        from_public = (trunk.depth_of(name) == 0) == (amount > 0)
        torch.testing.assert_close(value, public[name] if from_public else released[name], rtol=0, atol=0)
