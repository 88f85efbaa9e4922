"""The verdict on an attack, and the interval of a mean over several numbers of examples."""

from __future__ import annotations

import math

import pytest

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.statistics import pooled_interval, t_interval
from sdm_ray.core.verdict import few_reruns, says, verdict

REGRET, SCRATCH, KEPT = str(Metric.REGRET_ACCURACY), str(Metric.SCRATCH_REGRET), str(Metric.KEPT_HARMFUL)


def interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, Metric.low(name): low, Metric.high(name): high}


@pytest.mark.parametrize(
    ("outcome", "metrics"),
    [
        (None, {str(Metric.DESIRED_ACCURACY): 0.9}),
        ("cannot be concluded", {REGRET: math.nan}),
        ("cannot be concluded", interval(REGRET, 0.0, math.nan, math.nan)),
        ("not blocked", interval(REGRET, 0.1, 0.05, 0.15) | {"audit/passed": 0.0}),
        ("cannot be concluded", interval(REGRET, 0.0, -0.1, 0.01) | {"audit/passed": 0.0}),
        ("cannot be concluded", interval(REGRET, 0.0, -0.1, 0.1)),
        ("blocked", interval(REGRET, 0.003, 0.001, 0.005)),
        ("blocked", interval(SCRATCH, 0.003, 0.001, 0.005) | interval(KEPT, 0.01, 0.003, 0.02)),
        ("not blocked", interval(SCRATCH, 0.015, 0.01, 0.02) | interval(KEPT, 0.5, 0.3, 0.7)),
        ("cannot be concluded", interval(SCRATCH, 0.015, 0.01, 0.02) | interval(KEPT, 0.1, 0.05, 0.2)),
        ("blocked", interval(SCRATCH, -0.1, -0.2, -0.05) | {REGRET: 0.5}),
    ],
)
def test_the_interval_is_held_against_the_tolerance(outcome: str | None, metrics: dict[str, float]) -> None:
    found = verdict(metrics)
    assert (None if found is None else str(found.outcome)) == outcome


def test_failed_checks_are_named() -> None:
    said = says(interval(REGRET, 0.0, -0.1, 0.01) | {"audit/passed": 0.0}, ["gradient_masking", "collapse"])
    assert said is not None
    assert said.startswith("cannot be concluded: the audit failed")
    assert said.endswith("; failed checks: gradient masking, collapse")


def test_few_re_runs_warn() -> None:
    assert few_reruns(4) is None
    assert "attack.num_rerun_seeds" in str(few_reruns(3))
    assert "2 searches" in str(few_reruns(8, num_searches=2))


def test_differences_between_sizes_do_not_cancel() -> None:
    """Two re-runs whose means over n are alike by chance have no interval of no width."""
    groups = [[0.587, 0.605], [0.605, 0.587]]
    low, high = pooled_interval(groups)
    alone = t_interval(groups[0])
    assert 0.01 < high - low < alone[1] - alone[0]
    assert pooled_interval(groups[:1]) == pytest.approx(alone, abs=1e-6)
    assert all(map(math.isnan, pooled_interval([[0.5], [0.5, 0.6]])))
