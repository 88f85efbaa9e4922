"""The paper's toy world: vectors instead of text, two linear targets instead of classes (arXiv 2211.14946)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdm_ray.data.regression import RegressionWorld
from sdm_ray.meta.trainer import Trainer, TrainOutcome
from sdm_ray.models.mlp import VectorMlp
from tests.fakes.meta import drive, train_settings

LONG: dict[str, Any] = {
    "num_outer_steps": 150, "log_every_steps": 50, "learning_rate": 2e-3, "head_learning_rate": 2e-2,
    "adversary_learning_rate": 1e-2, "desired_batch_size": 64, "harmful_batch_size": 64,
}  # fmt: skip
ADVERSARY = {"num_steps": 4, "learning_rate_initial": 0.01, "learning_rate": {"low": 1e-4, "high": 0.1}}


def world() -> tuple[VectorMlp, Any]:
    return VectorMlp(input_dim=25, width=32, num_layers=2, seed=0), RegressionWorld(2000, 0)


def trained(**changes: Any) -> TrainOutcome:
    trunk, data = world()
    outcome, _ = drive(Trainer(train_settings(**{**LONG, **changes}), trunk=trunk, data=data, seed=0))
    assert outcome is not None
    return outcome


def test_the_desired_target_is_learnt_and_the_harmful_one_costs_its_adversaries_more() -> None:
    """Their squared error after all inner steps (1 is knowing nothing), against training that all but ignores it."""
    weak, strong = (trained(adversary=ADVERSARY, blocking={"harmful_adapted": weight}) for weight in (1e-6, 0.3))
    for outcome in (weak, strong):
        assert outcome.log[-1]["train/desired_loss"] < 0.3 * outcome.log[0]["train/desired_loss"]
    ends = [list((outcome.trajectory_end or {}).values())[-1] for outcome in (weak, strong)]
    assert ends[1] > ends[0] + 0.1


def test_terms_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="class"):
        trained(adversary=ADVERSARY, blocking={"harmful_adapted_entropy": 1.0})


@pytest.mark.parametrize("mode", ["unrolled", "adjoint", "adjoint_stored"])
def test_modes_agree_on_vectors(mode: str) -> None:
    first = trained(num_outer_steps=5, adversary=ADVERSARY, gradient_mode="unrolled")
    other = trained(num_outer_steps=5, adversary=ADVERSARY, gradient_mode=mode)
    for name, value in first.params.items():
        torch.testing.assert_close(value, other.params[name], rtol=1e-3, atol=1e-4)
