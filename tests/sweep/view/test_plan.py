"""What a sweep says before it starts, while it runs and when it was changed: `--dry-run`, `status`, `--fork`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.config import AttackSettings, TrialSettings, to_yaml
from sdm_ray.core.errors import UsageError
from sdm_ray.core.result import Status
from sdm_ray.sweep.records.folder import claimed_folder
from sdm_ray.sweep.records.warm import earlier_results, forked
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.view.plan import describe, plan_sweep
from sdm_ray.sweep.view.status import read_status
from sdm_ray.trial.cost import Probe, num_fine_tunes
from tests.fakes import sweep as sweep_fakes
from tests.sweep.state.test_state import add, result

PROBE = Probe(device="cpu", seconds_per_step=0.01, seconds_per_fine_tune=2.0, memory_bytes=2**30)


def test_fine_tunes_are_counted_as_the_protocol_runs_them() -> None:
    paper = {"preset": "paper", "families": ["fine_tune"]}
    assert num_fine_tunes(AttackSettings.model_validate(paper)) == 1560
    assert num_fine_tunes(AttackSettings.model_validate(paper | {"benign_num_examples": [50]})) == 1560 + 2 * 390
    assert num_fine_tunes(AttackSettings(preset="paper")) == 2 * 1560, "rescale has a budget of its own there"
    assert num_fine_tunes(AttackSettings()) == num_fine_tunes(AttackSettings(families=("fine_tune",)))


def test_a_plan_counts_trials_seconds_and_what_fits(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "search__num_trials": 10, "search__num_seeds": 3, "final": "{num_points: 2}", "references": "[tuned, random]",
        "trial__rungs": "[{step: 100, attack: {num_search_trials: 1}}]", "resources__cpus_per_trial": 1,
        "resources__max_concurrent_trials": 1,
    }  # fmt: skip
    settings = sweep_fakes.settings(tmp_path, **changes)
    plan = plan_sweep(settings, probe=PROBE)
    assert (plan.num_points, plan.num_trials, plan.num_references, plan.num_finals) == (10, 30, 6, 12)
    attack = settings.trial.attack
    training, once = 0.01 * settings.trial.train.num_outer_steps, 2.0 * num_fine_tunes(attack)
    rung = 2.0 * num_fine_tunes(settings.trial.rung_attack(0))
    assert plan.trial_seconds == {"training": training, "rungs": rung, "attack": once, "final": 2 * once}
    assert plan.seconds == pytest.approx((30 + 3) * (training + rung + once) + 3 * once + 12 * 2 * once)
    lines = "\n".join(describe(plan, settings))
    assert "10 points of 3 seed(s), 6 reference trials, 12 final attacks" in lines
    assert "rungs after 100 of 1000 outer steps" in lines
    capped = plan_sweep(sweep_fakes.settings(tmp_path, **changes, search__max_hours=0.001), probe=PROBE)
    assert capped.seconds is not None
    assert capped.seconds < plan.seconds / 2  # type: ignore[operator]
    assert plan_sweep(settings, probe=None).seconds is None
    with pytest.raises(UsageError, match=r"resources\.gpus_per_trial is 3 but the cluster has 0"):
        plan_sweep(sweep_fakes.settings(tmp_path, resources__gpus_per_trial=3), probe=None)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_status_reads_a_running_sweep_without_touching_it(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path, references="[tuned]")
    with claimed_folder(settings, resume=False) as folder:
        recorder = Recorder.open(settings, folder)
        add(recorder, result("tuned", 0.95, 0.8))
        add(recorder, result("t0000", 0.94, 0.6))
        add(recorder, dataclasses.replace(result("t0001", 0.9), status=Status.FAILED, error="it broke"))
        recorder.start(Entry("t0002", "search", "mlac", 2))
        path, whole = recorder.ledger.path, recorder.ledger.path.read_bytes()
        path.write_bytes(whole + b'{"event": "tri')
        lines = read_status(folder).lines()
        assert lines[0].startswith("sweep fake: 2/4 trials, 1 failed, 0 s in all, hypervolume 0.3760")
        assert lines[1].startswith("running: process ")
        assert lines[1].endswith(", trials t0002")
        assert lines[2] == "t0001 (mlac) failed: it broke"
        assert path.read_bytes() == whole + b'{"event": "tri', "a line that is being written is not cut off"
        path.write_bytes(whole)
    assert read_status(folder).lines()[1] == "not running; 2 trials are missing: --resume goes on"
    recorder.finish(result("t0002", 0.9, 0.7))
    add(recorder, result("t0003", 0.9, 0.7))
    assert read_status(folder).lines()[1] == "complete"


def test_a_changed_file_forks_and_keeps_what_still_means_the_same(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path, references="[tuned]")
    with pytest.raises(UsageError, match="holds no sweep to fork"):
        forked(settings)
    with claimed_folder(settings, resume=False) as folder:
        recorder = Recorder.open(settings, folder)
        add(recorder, result("tuned", 0.95, 0.8))
        recorder.start(Entry("t0000", "search", "mlac", 0, {sweep_fakes.RATE: 1e-3, sweep_fakes.WEIGHT: 1.0}))
        recorder.finish(result("t0000", 0.94, 0.6))
        recorder.ledger.close()
    wider = {"search__sampler": "nsga2", "search__max_desired_drop": 0.02}
    fork, said = forked(sweep_fakes.settings(tmp_path, references="[tuned]", **wider))
    assert (fork.name, fork.search.warm_start) == ("fake-2", "fake")
    assert said == "fork: sweep fake-2 starts from the 1 points that fake completed"
    ((params, values, _),) = earlier_results(fork)
    assert (params[sweep_fakes.WEIGHT], values) == (1.0, [0.94, 0.6])
    (tmp_path / "fake-2").mkdir()
    other, said = forked(sweep_fakes.settings(tmp_path, references="[tuned]", trial__train__num_outer_steps=7))
    assert (other.name, other.search.warm_start) == ("fake-3", None)
    assert "trial.train.num_outer_steps was 1000, is 7" in said


def test_results_on_other_data_or_of_another_encoder_are_not_gone_on_with(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path, references="[tuned, random]")
    read = {"data": "a" * 64, "encoder": "b" * 64}
    with claimed_folder(settings, resume=False) as folder:
        recorder = Recorder.open(settings, folder)
        add(recorder, dataclasses.replace(result("tuned", 0.95, 0.8), provenance=read))
        drawn = result("random", 0.6, 0.5)
        add(recorder, dataclasses.replace(drawn, method="random", provenance=read | {"encoder": "drawn"}))
        recorder.start(Entry("t0000", "search", "mlac", 0, {"data.max_length": 8}))
        recorder.finish(dataclasses.replace(result("t0000", 0.94, 0.6), provenance=read | {"data": "its own"}))
        recorder.ledger.close()
    for inputs in ({}, read):
        with claimed_folder(settings, resume=True, inputs=inputs):
            pass
        assert forked(settings, inputs)[0].search.warm_start == "fake"
    for name in read:
        phrase = f"when tuned was measured, the {name} had digest {read[name][:12]} and now cccccccccccc"
        changed = read | {name: "c" * 64}
        with (
            pytest.raises(UsageError, match=f"{phrase}; restore .* --fork"),
            claimed_folder(settings, resume=True, inputs=changed),
        ):
            pass
        fork, said = forked(settings, changed)
        assert fork.search.warm_start is None
        assert phrase in said


def test_dry_run_says_what_it_costs_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], data_file: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    from sdm_ray.cli import main

    document = {
        "name": "demo",
        "output_dir": str(tmp_path / "runs"),
        "trial": {
            "data": {"source": str(data_file), "max_length": 24},
            "encoder": {"name": str(encoder_folder)},
            "train": {"num_outer_steps": 400, "adversary": {"num_steps": 1}},
            "attack": {
                "num_examples": [8], "num_search_trials": 2, "num_rerun_seeds": 2, "num_steps_min": 20,
                "num_steps_max": 40, "batch_sizes": [4],
            },
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        },
        "space": {"train.learning_rate": {"type": "float", "low": 0.001, "high": 0.01}},
    }  # fmt: skip
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(document))
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(path), "--dry-run"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "sweep demo: 16 points of 1 seed(s), 5 reference trials" in out
    assert "ms an outer step" in out
    assert "expected in all: " in out
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(path), "--resume", "--fork"])
    assert stop.value.code == 2
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "sweep.yaml").write_text("name: demo\n")
    with pytest.raises(SystemExit) as stop:
        main(["status", str(tmp_path / "runs" / "demo")])
    assert not stop.value.code
    assert "not running; 21 trials are missing: --resume goes on" in capsys.readouterr().out


def test_settings_of_a_sweep_read_back(tmp_path: Path) -> None:
    """Conditions, rungs, a final stage and stopping rules survive YAML, as `--resume` needs them."""
    from sdm_ray.config import SweepSettings, load_settings

    space = {
        "train.adversary.num_steps": {"type": "categorical", "choices": [0, 4]},
        "train.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "when": {"train.adversary.num_steps": 4}},
    }
    settings = sweep_fakes.settings(
        tmp_path, space=json.dumps(space), final="{attack: {preset: worst-case}}", search__warm_start="old",
        trial__rungs="[{step: 100, attack: {num_search_trials: 1}}]", search__known_points="[paper]",
    )  # fmt: skip
    path = tmp_path / "sweep.yaml"
    path.write_text(to_yaml(settings))
    assert load_settings(SweepSettings, path) == settings
    assert settings.final_attack().families != TrialSettings().attack.families
    with pytest.raises(UsageError, match="fresh seeds"):
        sweep_fakes.settings(tmp_path, final="{attack: {seed: 0}}")
