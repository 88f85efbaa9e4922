"""Blocking terms on closed-form cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sdm_ray.config import BlockingSettings
from sdm_ray.meta.objectives import (
    TERMS,
    Trajectory,
    accuracies,
    blocking_loss,
    blocking_term,
    harmful_adapted,
    harmful_adapted_calibrated,
    harmful_adapted_clamped,
    harmful_base,
    step_losses,
)


def margins(*values: float) -> Trajectory:
    """One step for each value: every example of four has that logit on its right class and 0 on the other."""
    labels = torch.tensor([0, 1, 0, 1])
    onehot = F.one_hot(labels, 2).double()
    return Trajectory(torch.stack([value * onehot for value in values]), labels)


def loss(margin: float) -> float:
    return math.log1p(math.exp(-margin))


def test_every_weight_but_the_desired_one_names_a_term() -> None:
    assert set(TERMS) == set(BlockingSettings.model_fields) - {"desired_base"}


def test_base_is_the_first_step_alone() -> None:
    assert harmful_base(margins(1.0, 5.0)).item() == pytest.approx(loss(1.0))


def test_adapted_is_the_mean_over_all_steps() -> None:
    trajectory = margins(0.0, 1.0, 4.0)
    assert harmful_adapted(trajectory).item() == pytest.approx((math.log(2) + loss(1.0) + loss(4.0)) / 3)
    torch.testing.assert_close(step_losses(trajectory), torch.tensor([loss(m) for m in (0.0, 1.0, 4.0)]).double())


def test_clamped_counts_wrong_answers_no_more_than_guesses() -> None:
    trajectory = margins(-3.0, 2.0)
    assert harmful_adapted_clamped(trajectory).item() == pytest.approx((math.log(2) + loss(2.0)) / 2)
    logits = trajectory.logits.requires_grad_()
    (gradient,) = torch.autograd.grad(harmful_adapted_clamped(Trajectory(logits, trajectory.labels)), logits)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_calibrated_takes_the_best_map() -> None:
    # A margin m on the right class can be doubled (W = +-1 on the diagonal and off it), whatever its sign.
    for margin in (1.5, -1.5):
        assert harmful_adapted_calibrated(margins(margin)).item() == pytest.approx(loss(2 * 1.5), abs=1e-6)


def test_accuracy_by_step() -> None:
    assert accuracies(margins(1.0, -1.0)).tolist() == [1.0, 0.0]


def test_the_sum_subtracts_what_is_maximised() -> None:
    total, values = blocking_loss(margins(1.0, 4.0), {"harmful_base": 2.0, "harmful_adapted": 0.5})
    assert total.item() == pytest.approx(-2 * loss(1.0) - 0.5 * (loss(1.0) + loss(4.0)) / 2)
    assert values["harmful_base"].item() == pytest.approx(loss(1.0))


def test_a_term_of_ones_own_registers_by_name_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdm_ray.meta.objectives.TERMS", dict(TERMS))

    @blocking_term("peak", maximised=False, adapted=True)
    def peak(trajectory: Trajectory) -> torch.Tensor:
        return trajectory.logits.max()

    total, values = blocking_loss(margins(3.0), {"peak": 2.0})
    assert (total.item(), values["peak"].item()) == (6.0, 3.0)
    with pytest.raises(ValueError, match="'peak' is already registered"):
        blocking_term("peak", maximised=False, adapted=True)(peak)
