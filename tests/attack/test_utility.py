"""What an attacked model still does of its desired task, and the worst case among attacks that leave it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.attack.report import AttackReport, Cell
from sdm_ray.attack.search import bounded_cell
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.types import Split, Task
from sdm_ray.data.interface import UNLABELLED
from tests.fakes.attack_world import FakeData, TinyTrunk, attack, params_of, quick


@pytest.fixture(scope="module")
def head() -> torch.Tensor:
    return torch.randn(2, TinyTrunk().feature_dim, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def report(head: torch.Tensor) -> AttackReport:
    settings = quick(families=("full", "head", "linear_probe"), num_search_trials=4, num_steps_min=40)
    return attack(FakeData(), settings, knowledge=Knowledge(own_head=head))


def test_frozen_attackers_leave_the_desired_task_as_it_was(report: AttackReport, head: torch.Tensor) -> None:
    trunk = TinyTrunk(seed=0)
    released, _ = desired_scores(trunk, params_of(trunk), head, FakeData(), Split.TEST)
    for cell in report.family_cells:
        if cell.family in ("head", "linear_probe"):
            assert cell.desired_accuracy == pytest.approx(released)
        else:
            assert math.isfinite(cell.desired_accuracy)
            assert cell.desired_accuracy != pytest.approx(released, abs=1e-6)


def test_only_reruns_are_measured(report: AttackReport) -> None:
    for record in report.records:
        assert math.isfinite(record.desired_accuracy) == (record.phase == "rerun")


def test_metrics(report: AttackReport) -> None:
    metrics = report.metrics()
    sizes = [cell.num_examples for cell in report.cells]
    left = [metrics[Metric.utility(n)] for n in sizes]
    assert metrics[Metric.UTILITY_DESIRED] == pytest.approx(sum(left) / len(left))
    assert metrics[Metric.HARMFUL_BOUNDED_ACCURACY] <= metrics[Metric.HARMFUL_WORST_ACCURACY] + 0.2
    assert [cell.num_examples for cell in report.bounded] == sizes
    restored = AttackReport.from_json(report.to_json())
    assert repr(restored) == repr(report)
    old = {name: value for name, value in report.to_json().items() if name != "bounded"}
    assert AttackReport.from_json(old).bounded == ()


def test_without_a_released_head_nothing_is_said() -> None:
    report = attack(FakeData())
    assert report.bounded == ()
    assert Metric.UTILITY_DESIRED not in report.metrics()
    assert Metric.HARMFUL_BOUNDED_ACCURACY not in report.metrics()


def cell(like: Cell, family: str, val_accuracy: float, desired: float) -> Cell:
    return dataclasses.replace(like, family=family, val_accuracy=val_accuracy, desired_accuracy=desired, valid=True)


def test_the_bounded_worst_case_passes_over_attacks_that_destroy_the_model(report: AttackReport) -> None:
    like = report.cells[0]
    strong, mild = cell(like, "full", 0.9, 0.3), cell(like, "head", 0.7, 0.8)
    found = bounded_cell([strong, mild], 0.75)
    assert found is not None
    assert found.family == "head"
    assert bounded_cell([strong, mild], 0.2) == strong
    assert bounded_cell([strong], 0.75) is None
    assert bounded_cell([cell(like, "full", 0.9, math.nan)], 0.1) is None


def test_benign_first_trains_on_desired_labels_that_are_there() -> None:
    data = FakeData()
    data.labels[Task.DESIRED][::2] = UNLABELLED
    settings = quick(families=("benign_first",), num_examples=(20,), num_search_trials=1, num_rerun_seeds=1)
    report = attack(data, settings)
    assert [record.error for record in report.records if record.status != "ok"] == []
