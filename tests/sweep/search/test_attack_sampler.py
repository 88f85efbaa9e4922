"""Optuna's sampler in the attacker's search."""

from __future__ import annotations

import math

import pytest

from sdm_ray.attack.space import Chance, Choice, Integer, LogFloat
from sdm_ray.core.errors import UsageError
from sdm_ray.sweep.search.attack_sampler import NUM_STARTUP_TRIALS, TpeSampler
from sdm_ray.sweep.search.samplers import attack_samplers
from tests.fakes.attack_world import FakeData, attack, quick

SPACE = {
    "learning_rate": LogFloat(1e-5, 1e-1), "num_steps": Integer(3, 7), "optimizer": Choice(("adam", "lion")),
    "frozen": Chance(0.3),
}  # fmt: skip


def search(seed: int, num: int = 40) -> list[dict[str, object]]:
    """Learning rates near 1e-3 are best; every seventh point fails."""
    sampler, points = TpeSampler(SPACE, seed), []
    while len(points) < num:
        asked = sampler.ask(num - len(points))
        scores = [-abs(math.log10(point["learning_rate"]) + 3) for point in asked]
        sampler.tell(asked, [math.nan if (len(points) + i) % 7 == 0 else score for i, score in enumerate(scores)])
        points += asked
    return points


def test_it_learns_from_scores_and_repeats_itself() -> None:
    points = search(3)
    assert points == search(3)
    assert points != search(4)
    errors = [abs(math.log10(point["learning_rate"]) + 3) for point in points]  # type: ignore[arg-type]
    late = errors[-10:]
    assert sum(late) / 10 < 0.6 * sum(errors[:NUM_STARTUP_TRIALS]) / NUM_STARTUP_TRIALS
    assert {point["optimizer"] for point in points} == {"adam", "lion"}
    assert {type(point["frozen"]) for point in points} == {bool}
    assert all(3 <= point["num_steps"] <= 7 for point in points)  # type: ignore[operator]


def test_an_attack_searches_with_it() -> None:
    report = attack(FakeData(), quick(num_search_trials=13, sampler="tpe"), sampler=attack_samplers()["tpe"])
    assert all(cell.valid for cell in report.cells)
    assert len({record.trial for record in report.records if record.phase == "search"}) == 13


def test_a_sampler_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"attack\.sampler: 'tpe' is not there; known: sobol"):
        attack(FakeData(), quick(sampler="tpe"))
    assert set(attack_samplers()) == {"sobol", "tpe"}
