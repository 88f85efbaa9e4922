"""What is hidden in single tokens is found, what is gone is not."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

from sdm_ray.attack.engine.token_readers import TokenReaders
from sdm_ray.attack.families.token_probe import NAME_READINGS
from sdm_ray.attack.findings import information
from sdm_ray.attack.findings.audit import audit
from sdm_ray.attack.findings.checks import INFORMATION_MARGIN, Check
from sdm_ray.attack.findings.information import Site, Told, balanced_with_error, beside, measure_information
from sdm_ray.attack.findings.signals import measure_signals
from sdm_ray.attack.protocol import AttackReport, attack_model
from sdm_ray.core.types import Task
from sdm_ray.models.trunk import Trunk
from tests.attack.findings.planted import HIDDEN, Names, Pairs, encoder, erased, hidden, together
from tests.fakes.attack_world import drain, params_of, quick

SEEDS = (1, pytest.param(2, marks=pytest.mark.slow))
"""Thresholds were set on seed 0; the second of these is checked with the slow tests."""


def attacked(trunk: Trunk, data: Names, families: tuple[str, ...] = ("token_probe",), **changes: Any) -> AttackReport:
    settings = quick(families=families, **{"num_examples": (60, "all"), "num_curve_points": 0, **changes})
    return drain(attack_model(trunk, params_of(trunk), data, settings))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_in_tokens_is_found(name: str, seed: int) -> None:
    (cell,) = attacked(hidden(name, seed), Names(seed), num_examples=("all",)).cells
    assert cell.accuracy > 0.85, cell.winner


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [lambda seed: encoder(seed, knows=False), erased], ids=["scratch", "erased"])
def test_what_is_gone_is_not_found(make: Any, seed: int) -> None:
    report = attacked(make(seed), Names(seed))
    assert max(cell.accuracy for cell in report.cells) < 0.6


def test_a_name_is_found_wherever_it_stands() -> None:
    """The attacker does not know where: a query learns it, or an extreme gives it away."""
    (cell,) = attacked(hidden("one-token", 1), Names(1, place=None), num_examples=("all",)).cells
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


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_layer_makes_of_two_pieces_is_found_by_their_interaction_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among readings of states. The tiny encoder's states do not span all directions, so `missing` finds it too."""
    monkeypatch.setattr(TokenReaders, "misses_directions", False)
    report = attacked(together(seed), Pairs(seed), num_examples=(60,), num_probe_trials=8, num_rerun_seeds=1)
    (cell,) = report.cells
    assert cell.accuracy > 0.9, cell.winner
    assert cell.winner is not None
    assert cell.winner.reading == "interaction"
    assert "tell together in all hidden states" in cell.winner.describe()
    others = [r.val_accuracy for r in report.records if r.phase == "search" and r.reading != "interaction"]
    assert max(others) < 0.85


@pytest.mark.parametrize("seed", SEEDS)
def test_an_interaction_of_pieces_that_know_nothing_tells_nothing(seed: int) -> None:
    trunk, data = together(seed, knows=False), Pairs(seed)
    (cell,) = attacked(trunk, data, num_examples=(60,), num_probe_trials=8).cells
    assert cell.accuracy < 0.6, cell.winner


@cache
def world(seed: int) -> Names:
    """Data that no test alters."""
    return Names(seed)


@cache
def floor(seed: int) -> tuple[Told, ...]:
    """What an encoder without pretraining tells of `world`: the same for whatever stands beside it."""
    fresh = encoder(seed + 500, knows=False)
    return measure_information(fresh, params_of(fresh), world(seed), Task.HARMFUL, 0)


def informed(trunk: Trunk, seed: int) -> tuple[Site, ...]:
    return beside(measure_information(trunk, params_of(trunk), world(seed), Task.HARMFUL, 0), floor(seed))


def test_the_audit_reads_what_pieces_tell_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "layers", lambda facts: (1,))
    monkeypatch.setattr(information, "readings", lambda facts: [way for way in NAME_READINGS if "inter" in way[0]])
    trunk = together(1)
    _, told = measure_information(trunk, params_of(trunk), Pairs(1), Task.HARMFUL, 0)
    assert told.reader == "ridge on what a name's tokens tell together in hidden state 1, and alone, standardised"
    assert told.accuracy > 0.9


def checked(trunk: Trunk, seed: int, report: AttackReport) -> Check:
    """The check of information, after an attack."""
    signals = measure_signals(trunk, params_of(trunk), world(seed), Task.HARMFUL, 0)
    found = audit(report, signals=signals, floor_signals=signals, information=informed(trunk, seed))
    return found.check("information")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [name for name in HIDDEN if name != "undefended"])
def test_what_an_attack_that_pools_does_not_find_fails_the_audit(name: str, seed: int) -> None:
    """Every label and every site is asked: the point is hidden, not removed, whatever the attack was."""
    trunk = hidden(name, seed)
    report = attacked(trunk, Names(seed), ("linear_probe",), num_examples=(60,), num_search_trials=2)
    assert report.worst_accuracy < 0.85
    check = checked(trunk, seed, report)
    assert check.passed is False
    assert check.said.startswith("hidden, not removed: ")
    assert "where one without pretraining tells" in check.said


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [lambda seed: encoder(seed, knows=False), erased], ids=["scratch", "erased"])
def test_what_is_gone_passes_the_audit(make: Any, seed: int) -> None:
    trunk = make(seed)
    report = attacked(trunk, Names(seed), ("linear_probe",), num_examples=(60,), num_search_trials=2)
    check = checked(trunk, seed, report)
    assert check.passed is True, check.said
    assert check.value < INFORMATION_MARGIN


def test_what_the_attack_finds_is_not_hidden() -> None:
    trunk = hidden("one-token", 1)
    report = attacked(trunk, Names(1), num_examples=("all",))
    assert report.worst_accuracy > 0.9
    check = checked(trunk, 1, report)
    assert check.passed is True
    assert check.said.startswith("nothing is hidden from the attack: ")


def test_information_that_was_not_measured_is_no_pass() -> None:
    trunk = encoder(1, knows=False)
    report = attacked(trunk, Names(1), ("linear_probe",), num_examples=(60,), num_search_trials=1)
    signals = measure_signals(trunk, params_of(trunk), Names(1), Task.HARMFUL, 0)
    check = audit(report, signals=signals, floor_signals=signals).check("information")
    assert (check.passed, math.isnan(check.value)) == (None, True)


def test_every_site_is_read_and_named() -> None:
    sites = informed(encoder(1), 1)
    assert [site.name for site in sites] == [
        "pooled features", "hidden state 0 (the embeddings)", "hidden state 2", "hidden state 1",
        "rows of the token embedding",
    ]  # fmt: skip
    assert all(site.released.low <= site.released.accuracy <= site.released.high for site in sites)


def test_texts_about_one_name_are_one_draw() -> None:
    """With ten texts a name the error is that of as many texts as there are names."""
    labels = torch.arange(400) % 2
    right = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.7
    alone, error = balanced_with_error(right, labels, torch.arange(400))
    tenfold = [value.repeat_interleave(10) for value in (right, labels, torch.arange(400))]
    assert balanced_with_error(*tenfold) == pytest.approx((alone, error))
    assert error == pytest.approx(math.sqrt(0.7 * 0.3 / 400), rel=0.1)
