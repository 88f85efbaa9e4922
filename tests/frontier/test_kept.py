"""Head starts kept as the frontier reads them, and trials that are no better than training from scratch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.kept import UNMEASURED, good_metric, kept, kept_note
from sdm_ray.frontier.points import Point, near_front, pareto_front, point_from_result, with_point
from sdm_ray.frontier.select import select
from sdm_ray.frontier.tables import read_tables, write_tables


def point(name: str, desired: float = 0.9, harmful: float = 0.5, /, **metrics: float) -> Point:
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    return Point(trial_id=name, method="mlac", desired=desired, harmful=harmful, metrics=named)


def dominated(name: str, desired: float = 0.99, harmful: float = 0.1) -> Point:
    known = {"desired__accuracy": 0.95, "scratch__desired_accuracy": 0.96}
    return point(name, desired, harmful, scratch__dominates=1.0, **known)


def test_benign_tasks_are_read_where_any_point_has_them_else_the_desired_one() -> None:
    old, few = point("a"), point("b", kept__desired=0.8)
    benign = point("c", kept__desired=0.8, kept__benign=0.7, **{"kept__benign__low": 0.6, "kept__benign__high": 0.9})
    assert good_metric([old, few]) == Metric.KEPT_DESIRED
    assert good_metric([old, few, benign]) == Metric.KEPT_BENIGN
    assert good_metric([old]) == Metric.KEPT_BENIGN
    share = kept(benign, Metric.KEPT_BENIGN)
    assert (share.good, share.good_interval, share.harmful_interval) == (0.7, (0.6, 0.9), None)
    assert not share.known
    assert not kept(few, Metric.KEPT_BENIGN).known
    assert kept(point("d", kept__benign=-0.1, kept__harmful=1.2), Metric.KEPT_BENIGN).known


def test_a_trial_no_better_than_scratch_stands_off_the_front_and_dominates_nothing() -> None:
    good, bad = point("good", scratch__dominates=0.0), dominated("bad")
    assert bad.dominated_by_scratch
    assert not bad.eligible
    assert pareto_front([bad, good]) == [good]
    assert near_front([good, dataclasses.replace(bad, harmful_interval=(0.0, 0.2))]) == []
    assert with_point([good], bad) == [good]
    assert not dataclasses.replace(bad, is_reference=True).dominated_by_scratch
    assert not point("of several seeds, one better", scratch__dominates=0.5).dominated_by_scratch


def test_it_is_read_from_results_and_from_tables(tmp_path: Path) -> None:
    values: dict[str, Any] = {"config_hash": "", "method": "mlac", "seed": 0, "status": Status.COMPLETE}
    metrics = {str(Metric.DESIRED_ACCURACY): 0.9, str(Metric.HARMFUL_WORST_ACCURACY): 0.5, "scratch/dominates": 1.0}
    made = point_from_result(TrialResult(trial_id="t", metrics=metrics, output_dir=tmp_path, **values))
    write_tables([made, point("old")], tmp_path)
    assert [read.dominated_by_scratch for read in read_tables(tmp_path)] == [True, False]


def test_no_rule_picks_it_and_its_name_is_refused_with_a_reason() -> None:
    points = [dominated("bad"), point("good")]
    assert select(points).trial_id == "good"
    assert select(points, rule="weighted").trial_id == "good"
    with pytest.raises(
        UsageError,
        match=r"trial 'bad' is no better than .* from scratch, .* \(desired 0\.950 against 0\.960\); choose a trial",
    ):
        select(points, rule="trial", trial_id="bad")
    reference = dataclasses.replace(points[0], is_reference=True)
    assert select([reference], rule="trial", trial_id="bad") is reference


def test_an_empty_front_counts_them() -> None:
    points = [dominated("a"), dominated("b"), dataclasses.replace(dominated("c"), feasible=False)]
    with pytest.raises(UsageError, match=r"of 3 trials 1 failed.*infeasible, 2 are no better than .* and 0 lack"):
        select(points)
    with pytest.raises(UsageError) as without:
        select(points[2:])
    assert "scratch" not in str(without.value)


@pytest.mark.parametrize(
    ("points", "note"),
    [
        ([point("old")], UNMEASURED),
        ([point("new", scratch__harmful_accuracy=0.5)], None),
        ([point("new", kept__harmful=0.5)], None),
        ([point("new", kept__harmful=0.5), point("old and dominated", 0.5, 0.9)], None),
        ([point("new", kept__harmful=0.5), point("old on the front", 0.95, 0.9)], UNMEASURED),
        ([dominated("bad")], UNMEASURED),
        ([dataclasses.replace(point("tuned"), is_reference=True)], None),
        ([], None),
    ],
)
def test_results_of_before_scratch_are_noted(points: list[Point], note: str | None) -> None:
    assert kept_note(points) == note
