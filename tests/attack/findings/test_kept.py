"""Head starts kept: ratios and intervals on reports with known accuracies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest

from sdm_ray.attack.findings.kept import Trio, above, exceeds, kept_metrics
from sdm_ray.attack.report import AttackReport
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from tests.fakes.attack_world import FakeData, attack


@pytest.fixture(scope="module")
def report() -> AttackReport:
    return attack(FakeData())


def of(report: AttackReport, *accuracies: Sequence[float]) -> AttackReport:
    """The report with other test accuracies by seed, one row for each n."""
    cells = tuple(
        dataclasses.replace(cell, seed_accuracies=tuple(values))
        for cell, values in zip(report.cells, accuracies, strict=True)
    )
    return dataclasses.replace(report, cells=cells)


SCRATCH, PUBLIC = ([0.5, 0.6], [0.5, 0.6]), ([0.9, 1.0], [0.9, 1.0])


def trio(report: AttackReport, *accuracies: Sequence[float]) -> Trio:
    return Trio(of(report, *accuracies), of(report, *SCRATCH), of(report, *PUBLIC))


def test_ends_of_the_scale(report: AttackReport) -> None:
    name = str(Metric.KEPT_HARMFUL)
    for accuracies, expected in ((SCRATCH, 0.0), (PUBLIC, 1.0)):
        metrics = kept_metrics(trio(report, *accuracies), {})
        assert metrics[name] == pytest.approx(expected)
        assert metrics[Metric.low(name)] == pytest.approx(expected)
        assert metrics[Metric.high(name)] == pytest.approx(expected)


def test_mean_over_sizes_and_seeds(report: AttackReport) -> None:
    metrics = kept_metrics(trio(report, [0.6, 0.7], [0.7, 0.8]), {})
    assert metrics[Metric.kept_at("harmful", 20)] == pytest.approx(0.25)
    assert metrics[Metric.kept_at("harmful", 40)] == pytest.approx(0.5)
    assert metrics[str(Metric.KEPT_HARMFUL)] == pytest.approx(0.375)


def test_seeds_are_paired(report: AttackReport) -> None:
    name = str(Metric.KEPT_HARMFUL)
    metrics = kept_metrics(trio(report, [0.7, 0.8], [0.7, 0.8]), {})
    assert metrics[Metric.high(name)] - metrics[Metric.low(name)] < 1e-9  # every seed keeps the same
    crossed = kept_metrics(trio(report, [0.8, 0.7], [0.8, 0.7]), {})
    assert crossed[name] == pytest.approx(metrics[name])
    assert crossed[Metric.low(name)] < crossed[name] - 0.1 < crossed[Metric.high(name)] - 0.1


def test_benign_tasks(report: AttackReport) -> None:
    none = Trio(of(report, *SCRATCH), of(report, *SCRATCH), of(report, *SCRATCH))
    benign = {
        "desired": trio(report, [0.5, 0.6], [0.5, 0.6]),
        "region": trio(report, *PUBLIC),
        "origin": trio(report, [0.7, 0.8], [0.7, 0.8]),
        "easy": none,
    }
    metrics = kept_metrics(trio(report, *SCRATCH), benign)
    assert metrics[str(Metric.KEPT_DESIRED)] == pytest.approx(0.0)
    assert metrics[Metric.kept_benign("region")] == pytest.approx(1.0)
    assert metrics[Metric.kept_benign("origin")] == pytest.approx(0.5)
    assert math.isnan(metrics[Metric.kept_benign("easy")])  # the public encoder has no head start there
    assert metrics[str(Metric.KEPT_BENIGN)] == pytest.approx(0.75)  # so it does not count


def test_a_missing_seed_is_left_out_and_a_missing_cell_says_nothing(report: AttackReport) -> None:
    metrics = kept_metrics(trio(report, [0.7, math.nan], [0.7, 0.8]), {})
    assert metrics[Metric.kept_at("harmful", 20)] == pytest.approx(0.5)
    assert math.isnan(metrics[Metric.low(Metric.kept_at("harmful", 20))])  # one seed has no interval
    metrics = kept_metrics(trio(report, [math.nan, math.nan], [0.7, 0.8]), {})
    assert math.isnan(metrics[str(Metric.KEPT_HARMFUL)])


def test_different_settings_are_refused(report: AttackReport) -> None:
    other = dataclasses.replace(of(report, *SCRATCH), settings=report.settings | {"seed": 99})
    with pytest.raises(UsageError, match="different settings"):
        kept_metrics(Trio(of(report, *PUBLIC), other, of(report, *PUBLIC)), {})


def test_above(report: AttackReport) -> None:
    value, low, high = above(of(report, [0.7, 0.8], [0.6, 0.7]), of(report, *SCRATCH))
    assert value == pytest.approx(0.15)
    assert low == pytest.approx(0.15)
    assert high == pytest.approx(0.15)
    assert all(map(math.isnan, above(of(report, [math.nan] * 2, [0.6, 0.7]), of(report, *SCRATCH))))


def test_exceeds() -> None:
    assert exceeds(0.96, 0.90, 500)
    assert not exceeds(0.96, 0.95, 500)
    assert exceeds(0.96, 0.95, 50_000)
    assert not exceeds(0.90, 0.96, 500)
