"""What `best`, `register` and `train` say of the model that they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdm_ray.cli.app import main
from sdm_ray.cli.verdicts import failed_checks, point_lines
from sdm_ray.config import TrialSettings, to_yaml
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult, write_result
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import write_tables

REGRET = str(Metric.REGRET_ACCURACY)
METRICS = {
    "desired/accuracy": 0.9, "harmful/worst_accuracy": 0.523, "harmful/worst_accuracy/low": 0.5,
    "harmful/worst_accuracy/high": 0.55, "audit/passed": 0.0, REGRET: 0.0, f"{REGRET}/low": -0.01,
    f"{REGRET}/high": 0.01,
}  # fmt: skip


def test_figures_then_the_verdict_with_the_checks_that_failed() -> None:
    figures, verdict = point_lines(METRICS, ["gradient_masking"])
    assert figures == "desired accuracy 0.900, worst-case harmful accuracy 0.523 [0.500, 0.550]"
    assert verdict.startswith("verdict cannot be concluded: the audit failed")
    assert verdict.endswith("failed checks: gradient masking")
    assert point_lines({"audit/passed": 0.0}, ["collapse"], {}) == ["verdict the audit failed: collapse"]
    assert point_lines({}) == []


def test_best_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    trial = folder / "trials" / "t0"
    trial.mkdir(parents=True)
    (trial / "config.yaml").write_text(to_yaml(TrialSettings()))
    (folder / "sweep.yaml").write_text("name: demo\n")
    points = [Point(trial_id="t0", method="mlac", desired=0.9, harmful=0.523, metrics=METRICS, feasible=False)]
    write_tables(points, folder)
    result = TrialResult(
        trial_id="t0", config_hash="0", method="mlac", seed=0, status=Status.COMPLETE, metrics=METRICS,
        output_dir=trial, failed_checks={"gradient_masking": "seen"},
    )  # fmt: skip
    write_result(result)
    assert failed_checks(folder, "t0") == ["gradient_masking"]
    with pytest.raises(SystemExit):
        main(["best", str(folder), "--trial", "t0", "--out", str(tmp_path / "best.yaml")])
    out = capsys.readouterr().out
    assert "worst-case harmful accuracy 0.523 [0.500, 0.550]" in out
    assert "the audit failed" in out
    assert "failed checks: gradient masking" in out
