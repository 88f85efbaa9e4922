"""What a sweep without a frontier says to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdm_ray.attack.findings import audit, checks
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, point_from_result
from sdm_ray.sweep.view.advice import CHECKS, what_to_change
from tests.fakes import sweep as sweep_fakes
from tests.fakes.results import accuracies, trial_result


def result(trial_id: str, desired: float = 0.9, **more: Any) -> TrialResult:
    metrics = accuracies(desired, 0.6) | more.pop("metrics", {})
    return trial_result(trial_id, metrics=metrics, **more)


def lines(results: list[TrialResult], **changes: Any) -> list[str]:
    points = [point_from_result(each) for each in results]
    points.append(Point(trial_id="tuned", method="tuned", desired=0.96, harmful=0.8, is_reference=True))
    return what_to_change(sweep_fakes.settings(Path(), **changes), [*results, result("tuned")], points)


def test_every_check_has_its_remedy() -> None:
    empty = audit.Audit(checks=())
    assert empty.passed
    source = Path(str(checks.__file__)).read_text(encoding="utf-8")
    named = {part.split('"')[0] for part in source.split('name="')[1:]}
    assert named == CHECKS.keys()


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (result("t0000", failed_checks={"information": "seen"}), "check information failed; what is hidden"),
        (result("t0000", status=Status.FAILED, error="out of memory"), "failed (out of memory); put that right"),
        (result("t0000", status=Status.STOPPED), "stopped at a rung; loosen search.stopping"),
        (result("t0000", metrics={str(Metric.SCRATCH_DOMINATES): 1.0}), "no better than training from scratch"),
        (result("t0000", metrics={str(Metric.HARMFUL_WORST_ACCURACY): float("nan")}), "an objective was not measured"),
        (result("t0000", 0.9, status=Status.INFEASIBLE), "than search.max_desired_drop (0.05); set it to 0.07 or more"),
    ],
)
def test_each_reason_says_what_to_change(ended: TrialResult, words: str) -> None:
    (line,) = lines([ended], search__max_desired_drop=0.05)
    assert line.startswith("1 of 1 trials: ")
    assert words in line


def test_reasons_are_counted_and_the_final_attack_counts() -> None:
    failed = {"failed_checks": {"collapse": "seen"}}
    found = lines(
        [result("t0000", **failed), result("t0001", **failed), result("t0002"), result("t0002-final", **failed)]
    )
    assert [line.partition(" trials")[0] for line in found] == ["3 of 3"]
