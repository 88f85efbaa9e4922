"""What the page says of points beyond their numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.records import details as details_module
from sdm_ray.sweep.records.details import details_of
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.sweep.state.state import SweepState
from tests.fakes import sweep as sweep_fakes

NO_RUN: dict[str, str] = {}


def sweep(folder: Path, **changes: Any) -> tuple[SweepState, Path]:
    settings = sweep_fakes.settings(folder, references="[tuned]", search__num_trials=2, **changes)
    trial, final = "tests.fakes.sweep:seeded", "tests.fakes.sweep:final"
    outcome = run_sweep(settings, view=SilentView(), trial_function=trial, final_function=final)
    return SweepState(settings, read_record(outcome.folder)), outcome.folder


def attacked(folder: Path, trial_id: str, accuracy: float) -> None:
    cells = [
        {"family": "fine_tune", "num_examples": 20, "accuracy": accuracy},
        {"family": "token_probe", "num_examples": 20, "accuracy": None},
    ]
    (folder / "trials" / trial_id / "attack.json").write_text(json.dumps({"family_cells": cells}))


@pytest.mark.usefixtures("in_process")
def test_what_families_found_is_the_mean_over_seeds_of_the_attack_that_counts(tmp_path: Path) -> None:
    state, folder = sweep(tmp_path, search__num_seeds=2, final="{num_points: 2}")
    points = state.judgement.points()
    for trial_id, accuracy in (("t0000", 0.1), ("t0000-final", 0.5), ("t0000-s1-final", 0.7)):
        attacked(folder, trial_id, accuracy)
    (folder / "trials" / "t0000" / "model").mkdir()
    (folder / "trials" / "t0001-final" / "attack.json").write_text("[")
    found = details_of(state, folder, points, lambda trial_id: {"mlflow_run": f"run of {trial_id}"})
    assert found.keys() == {"tuned", "t0000", "t0001"}
    assert found["t0000"].found == {"fine_tune": {"20": pytest.approx(0.6)}}
    assert (found["t0000"].model, found["t0001"].model) == ("trials/t0000/model", "")
    assert found["t0000"].run == "run of t0000"
    assert found["t0001"].found == {}, "a damaged report is left out"


@pytest.mark.usefixtures("in_process")
def test_an_infeasible_point_says_why(tmp_path: Path) -> None:
    weights = json.dumps([{sweep_fakes.WEIGHT: 3.9}, {sweep_fakes.WEIGHT: 0.2}])
    state, folder = sweep(tmp_path, search__points=weights, search__max_desired_drop=0.05)
    points = state.judgement.points()
    found = details_of(state, folder, points, lambda trial_id: NO_RUN)
    assert [name for name, one in found.items() if one.reason.startswith("desired accuracy 0.84")] == ["t0000"]
    assert found["t0001"].reason == ""


@pytest.mark.usefixtures("in_process")
def test_of_many_points_those_that_count_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details_module, "MAX_ATTACKED", 2)
    weights = json.dumps([{sweep_fakes.WEIGHT: 0.2}, {sweep_fakes.WEIGHT: 0.4}])
    state, folder = sweep(tmp_path, search__points=weights)
    points = [
        dataclasses.replace(one, desired=0.1, harmful=0.99) if one.trial_id == "t0000" else one
        for one in state.judgement.points()
    ]
    for name in ("tuned", "t0000", "t0001"):
        attacked(folder, name, 0.5)
    found = details_of(state, folder, points, lambda trial_id: NO_RUN)
    assert [bool(found[name].found) for name in ("tuned", "t0000", "t0001")] == [True, False, True]
