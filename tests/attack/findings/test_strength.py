"""What ten times an attack's budget is said to find, against curves and draws whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sdm_ray.attack.findings.extrapolation import expected_maximum, forecast
from sdm_ray.attack.findings.strength import LEAST_POINTS, TIMES, Strength, Trend, attack_strength
from sdm_ray.attack.report import AttackReport, Cell
from sdm_ray.core.metric_names import Metric
from tests.fakes.attack_world import FakeData, attack, quick

Draw = Callable[[np.random.Generator, int], np.ndarray]
SIZES = (20, 50, 100, 200)


@pytest.fixture(scope="module")
def measured() -> AttackReport:
    return attack(FakeData())


def with_search(report: AttackReport, scores: dict[int, np.ndarray], **changes: Any) -> AttackReport:
    """A report whose search found these validation accuracies by n, at a FLOP for each label and point."""
    (first, *_) = (record for record in report.records if record.phase == "search")
    records = [
        dataclasses.replace(
            first, num_examples=size, trial=trial, repeat=0, seed_index=0, val_accuracy=float(value),
            **{"flops": float(size)} | changes,
        )
        for size, values in scores.items()
        for trial, value in enumerate(values)
    ]  # fmt: skip
    return dataclasses.replace(report, records=records)


def with_cells(report: AttackReport, means: list[float], spread: float = 0.01, seeds: int = 5) -> AttackReport:
    shifts = np.linspace(-1, 1, seeds) * spread if seeds > 1 else np.zeros(1)

    def cell(size: int, value: float) -> Cell:
        values = tuple((value + shifts).tolist())
        return dataclasses.replace(
            report.cells[0], num_examples=size, valid=math.isfinite(value), accuracy=value, accuracy_low=value - spread,
            accuracy_high=value + spread, seed_accuracies=values,
        )  # fmt: skip

    cells = tuple(cell(size, value) for size, value in zip(SIZES, means, strict=False))
    return dataclasses.replace(report, cells=cells)


def test_the_expected_maximum_is_that_over_all_subsets() -> None:
    values = np.array([0.3, 0.9, 0.1, 0.5, 0.5])
    for count in (1, 2, 3, 5):
        subsets = [max(subset) for subset in itertools.combinations(values, count)]
        assert expected_maximum(values, [count]) == pytest.approx([np.mean(subsets)])
    assert expected_maximum(np.stack([values, values[::-1] + 1]), [1, 5])[1] == pytest.approx([1.46, 1.9])


@pytest.mark.parametrize(
    ("curve", "truth"),
    [
        (lambda n: 0.5 + 0.0 * n, 0.5),
        (lambda n: 0.4 + 0.05 * np.log(n), 0.4 + 0.05 * math.log(2000)),
        (lambda n: 0.8 - 2.0 / n, 0.8 - 2.0 / 2000),
        (lambda n: 0.4 + 0.11 * np.log(n), 1.0),
        (lambda n: 0.9 - 0.02 * np.log(n), 0.9 - 0.02 * math.log(200)),
    ],
    ids=["flat", "log", "power", "capped", "falling"],
)
def test_known_curves_are_continued(curve: Callable[[np.ndarray], np.ndarray], truth: float) -> None:
    budgets = np.array([10.0, 20, 50, 100, 200])
    values = curve(budgets)
    draws = values + 0.002 * np.random.default_rng(0).standard_normal((400, 5))
    ahead = np.geomspace(200, 2000, 5)
    expected, low, high = forecast(budgets, values, draws, ahead)
    assert expected[-1] == pytest.approx(truth, abs=1e-6)
    assert low[-1] <= truth <= high[-1] + 1e-12
    assert (np.diff(expected) >= -1e-12).all()
    assert expected[0] == pytest.approx(values[-1]), "it sets out from what was measured"
    assert ((low >= 0) & (high <= 1) & (low <= expected) & (expected <= high)).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda g, k: 0.5 + 0.3 * g.random(k),
        lambda g, k: 0.5 + 0.04 * g.standard_normal(k),
        lambda g, k: 0.5 + 0.45 * g.beta(1, 4, k),
    ],
    ids=["uniform", "normal", "beta"],
)
def test_intervals_of_the_search_hold_what_ten_times_the_points_find(measured: AttackReport, draw: Draw) -> None:
    generator, points = np.random.default_rng(1), 48
    truth = np.mean([draw(generator, TIMES * points).max() for _ in range(500)])
    held, rising = 0, 0
    for _ in range(40):
        report = with_search(measured, {size: draw(generator, points) for size in SIZES})
        trend = attack_strength(report).search
        value, low, high = trend.forecast
        held += low <= truth <= high
        rising += value >= trend.accuracy[-1] and abs(value - truth) < 0.1
        assert high - low < 0.35
    assert held >= 35, held
    assert rising >= 36, rising


def test_budgets_are_flops_of_all_n_and_the_curve_ends_at_the_best_point(measured: AttackReport) -> None:
    scores = {20: np.linspace(0.5, 0.6, 20), 50: np.linspace(0.5, 0.8, 20)}
    strength = attack_strength(with_search(measured, scores))
    trend = strength.search
    assert strength.unit == "FLOPs"
    assert (trend.budgets[0], trend.budgets[-1]) == (70.0, 20 * 70.0)
    assert (trend.accuracy[0], trend.accuracy[-1]) == (pytest.approx(0.6), pytest.approx(0.7))
    assert list(trend.accuracy) == sorted(trend.accuracy)
    assert (trend.ahead[0], trend.ahead[-1]) == (pytest.approx(1400), pytest.approx(14000))
    assert attack_strength(with_search(measured, scores)) == strength, "the bootstrap has a seed"


def test_without_flops_search_points_are_counted(measured: AttackReport) -> None:
    strength = attack_strength(with_search(measured, {20: np.linspace(0.5, 0.6, 20)}, flops=math.nan))
    assert strength.unit == "search points"
    assert strength.search.budgets[-1] == 20
    assert strength.search.ahead


def test_a_failed_point_costs_and_finds_a_guess(measured: AttackReport) -> None:
    half = np.array([math.nan, 0.7] * 10)
    trend = attack_strength(with_search(measured, {20: half})).search
    assert trend.accuracy[0] == pytest.approx(0.6)
    assert trend.budgets[-1] == 400


def test_what_cannot_be_told_is_said_with_the_reason(measured: AttackReport) -> None:
    few = with_search(measured, {20: np.full(LEAST_POINTS - 1, 0.6)})
    assert "fewer than 8 search points at an n (7)" in attack_strength(few).describe()
    one = attack_strength(with_search(measured, {20: np.array([0.6])}))
    assert one.search.accuracy == (0.6,)
    assert all(map(math.isnan, one.search.forecast))
    assert str(Metric.STRENGTH_SEARCH) not in one.metrics()
    failed = with_search(measured, {20: np.full(20, math.nan), 50: np.full(20, 0.6)})
    assert "no search point finished at n = 20" in attack_strength(failed).describe()
    empty = attack_strength(dataclasses.replace(measured, records=[]))
    assert "what ten times the search would find cannot be told: no search point finished;" in empty.describe()
    cells = attack_strength(with_cells(measured, [0.5, math.nan, 0.6]))
    assert "fewer than 3 sizes n with a valid result (2)" in cells.describe()
    assert cells.examples.budgets == (20.0, 100.0)
    alone = attack_strength(with_cells(measured, [0.5, 0.55, 0.6], seeds=1))
    assert "one re-run at an n gives no interval" in alone.describe()


@pytest.mark.parametrize(("slope", "spread"), [(0.0, 0.01), (0.04, 0.01), (0.04, 0.03)])
def test_examples_are_extrapolated_from_the_cells(measured: AttackReport, slope: float, spread: float) -> None:
    means = [0.5 + slope * math.log(size / 20) for size in SIZES]
    trend = attack_strength(with_cells(measured, means, spread)).examples
    value, low, high = trend.forecast
    assert value == pytest.approx(0.5 + slope * math.log(100), abs=1e-6)
    assert low < value < high
    assert trend.ahead[-1] == pytest.approx(2000)
    assert trend.low == pytest.approx([mean - spread for mean in means]), "the intervals are those of the report"
    wider = attack_strength(with_cells(measured, means, 2 * spread)).examples.forecast
    assert wider[2] - wider[1] > high - low


def test_metrics_and_the_sentence_agree() -> None:
    told = Trend(
        budgets=(1.0,), accuracy=(0.523,), low=(0.5,), high=(0.55,), ahead=(1.0, 10.0), ahead_accuracy=(0.523, 0.54),
        ahead_low=(0.5, 0.51), ahead_high=(0.55, 0.58),
    )  # fmt: skip
    untold = Trend(budgets=(), accuracy=(), low=(), high=(), reason="why")
    strength = Strength(search=told, unit="FLOPs", examples=untold)
    assert strength.metrics() == {
        "strength/search_accuracy": 0.54, "strength/search_accuracy/low": 0.51, "strength/search_accuracy/high": 0.58,
    }  # fmt: skip
    assert strength.describe() == (
        "ten times the search would be expected to find 0.540 on attacker-validation (95 % interval 0.51 to 0.58; now "
        "0.523); what ten times the examples would find cannot be told: why"
    )


def test_a_real_attack_and_one_that_failed_throughout(measured: AttackReport) -> None:
    strength = attack_strength(measured)
    total = sum(record.flops for record in measured.records if record.phase == "search")
    assert strength.search.budgets[-1] == pytest.approx(total)
    settings = quick(learning_rate={"low": 1e30, "high": 1e30}, frozen_probability=0.0, num_examples=(20,))
    nothing = attack_strength(attack(FakeData(), settings))
    assert nothing.metrics() == {}
    assert "cannot be told" in nothing.describe()
