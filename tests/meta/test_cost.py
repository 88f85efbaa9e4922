"""What a training cost: every text it drew, FLOPs as a formula has them, and the same after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sdm_ray.core.flops import FlopCounter
from sdm_ray.core.metric_names import Metric
from sdm_ray.meta.checkpoint import load_checkpoint
from sdm_ray.meta.cost import NUM_MEASURED, TrainingCost, added
from sdm_ray.meta.trainer import Trainer
from tests.fakes.meta import FakeData, MlpTrunk, drive, interrupted_and_straight, train, train_settings

TEXTS, FLOPS = str(Metric.COST_TRAIN_TEXTS), str(Metric.COST_TRAIN_FLOPS)
POOL = {"size": 2, "lifespan_steps": 40, "subset_size": 20, "steps_per_turn": 2}


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"method": "pretrained"}, 8),
        ({"method": "tuned"}, 8),
        ({"method": "ac"}, 8 + 10),
        ({"adversary": {"num_steps": 3, "batch_sizes": [4], "num_adversaries": 2}}, 8 + 10 + 2 * 3 * 4),
        ({"adversary": {"num_steps": 0, "batch_sizes": [4], "pool": POOL}}, 8 + 10 + 2 * 4),
        ({"adversary": {"num_steps": 3, "batch_sizes": [4]}, "blocking": {"desired_adapted": 1.0}}, 8 + 10 + 3 * 4),
        ({"blocking": {"harmful_reduction": 1.0}, "accumulation_steps": 3}, 3 * (8 + 10)),
    ],
)
def test_texts_are_those_of_every_batch(settings: dict[str, Any], texts: int) -> None:
    outcome = train(train_settings(**settings, num_outer_steps=5))
    assert outcome.costs[TEXTS] == 5 * texts


def test_flops_are_those_of_matrix_products_forward_and_backward() -> None:
    """Two layers on 5 examples: 2 FLOPs an element forward, 2 for its gradient, 2 for its input's but the first."""
    model = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2, bias=False))
    with FlopCounter() as counter:
        model(torch.ones(5, 3)).sum().backward()
    assert counter.total == 5 * (4 * 21 + 6 * 14)


def test_flops_of_a_training_are_the_mean_of_some_steps_times_all() -> None:
    """Of the desired task alone: one matrix of the trunk and the head, for both of which the input has a gradient."""
    for num_steps in (3, 50):
        outcome = train(train_settings(method="tuned", num_outer_steps=num_steps))
        assert outcome.costs[FLOPS] == num_steps * 6 * 8 * (6 * 6 + 6 * 3)
    more = train(train_settings(adversary={"num_steps": 2}, num_outer_steps=3))
    assert more.costs[FLOPS] > 3 * outcome.costs[FLOPS] / 50


def test_a_compiled_training_counts_texts_alone() -> None:
    cost = TrainingCost(4, compiled=True)
    with cost.measuring(2), torch.no_grad():
        torch.ones(2, 2) @ torch.ones(2, 2)
    cost.add_texts(7)
    assert cost.metrics(2) == {TEXTS: 14.0}


def test_few_steps_are_measured_at_equal_distances() -> None:
    cost, seen = TrainingCost(80, compiled=False), []
    for step in range(80):
        before = cost.state_dict()["measured"]
        with cost.measuring(step):
            pass
        seen += [step] if cost.state_dict()["measured"] > before else []
    assert seen == [5 + 10 * index for index in range(NUM_MEASURED)]


def test_an_interrupted_training_cost_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    """With `auto`, the first step after an interruption measures memory anew and may cost something else."""
    adversary = {"num_steps": 3, "num_steps_min": 1, "batch_sizes": [4, 8]}
    settings = train_settings(adversary=adversary, gradient_mode="adjoint")
    resumed, straight = interrupted_and_straight(settings, MlpTrunk, tmp_path)
    assert resumed.costs == straight.costs


def test_a_checkpoint_of_before_costs_were_counted_lets_later_steps_stand_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(
        train_settings(method="tuned"), trunk=MlpTrunk(), data=FakeData(), seed=0, checkpoint_dir=tmp_path
    )
    drive(trainer, stop_at=8)

    def old(*arguments: Any) -> Any:
        found = load_checkpoint(*arguments)
        assert found is not None
        del found[1]["cost"]
        return found

    monkeypatch.setattr("sdm_ray.meta.trainer.load_checkpoint", old)
    again = Trainer(train_settings(method="tuned"), trunk=MlpTrunk(), data=FakeData(), seed=0, checkpoint_dir=tmp_path)
    outcome, _ = drive(again)
    assert outcome is not None
    assert outcome.costs[TEXTS] == 12 * 8
    assert outcome.costs[FLOPS] == 12 * 6 * 8 * (6 * 6 + 6 * 3)


def test_a_sum_knows_only_what_all_of_its_parts_know() -> None:
    assert added({TEXTS: 1.0, FLOPS: 2.0}, {TEXTS: 3.0, FLOPS: 4.0}) == {TEXTS: 4.0, FLOPS: 6.0}
    assert added({TEXTS: 1.0, FLOPS: 2.0}, {TEXTS: 3.0}) == {TEXTS: 4.0}
    assert added({TEXTS: 1.0}, {}) == {}
