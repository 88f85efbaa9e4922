"""What is hidden in single tokens is found, what is gone is not."""

from __future__ import annotations

from typing import Any

import pytest

from sdm_ray.attack.protocol import AttackReport, attack_model
from sdm_ray.models.trunk import Trunk
from tests.attack.findings.planted import HIDDEN, Names, Pairs, encoder, erased, hidden
from tests.fakes.attack_world import drain, params_of, quick

SEEDS = (1, 2)
"""Thresholds were set on seed 0."""


def attacked(trunk: Trunk, data: Names, families: tuple[str, ...] = ("token_probe",), **changes: Any) -> AttackReport:
    settings = quick(families=families, **{"num_examples": (60, "all"), "num_curve_points": 0, **changes})
    return drain(attack_model(trunk, params_of(trunk), data, settings))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_in_tokens_is_found(name: str, seed: int) -> None:
    report = attacked(hidden(name, seed), Names(seed))
    assert report.cells[-1].accuracy > 0.85, [cell.winner for cell in report.cells]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [lambda seed: encoder(seed, knows=False), erased], ids=["scratch", "erased"])
def test_what_is_gone_is_not_found(make: Any, seed: int) -> None:
    report = attacked(make(seed), Names(seed))
    assert max(cell.accuracy for cell in report.cells) < 0.6


def test_a_name_is_found_wherever_it_stands() -> None:
    """The attacker does not know where: a query learns it, or an extreme gives it away."""
    report = attacked(hidden("one-token", 1), Names(1, place=None))
    cell = report.cells[-1]
    assert cell.accuracy > 0.85
    assert cell.winner is not None
    assert cell.winner.reading in ("query", "maximum")


def test_a_name_is_read_where_it_is_known_to_stand() -> None:
    (cell,) = attacked(hidden("shrunk-0.01", 1), Names(1, place=None, known=True), num_examples=(40,)).cells
    assert cell.accuracy > 0.85
    assert cell.winner is not None
    assert cell.winner.reading == "known"


def test_a_name_of_two_pieces_that_tell_together_alone_is_found() -> None:
    """No state alone tells, and nothing linear in both: a nonlinear read-out of two tokens side by side does."""
    (cell,) = attacked(hidden("one-token", 1), Pairs(1), num_examples=("all",)).cells
    assert cell.accuracy > 0.85
    assert cell.winner is not None
    assert cell.winner.reading == "pair"
    assert cell.winner.readout in ("kernel", "perceptron")
