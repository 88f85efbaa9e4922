"""The command line: what it prints, what it writes, and one clear sentence with an exit code when it cannot."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sdm_ray
from sdm_ray.cli import diagnosis, main
from sdm_ray.cli.diagnosis import Check
from sdm_ray.cli.train import audit_lines
from sdm_ray.config import TrialSettings, load_settings
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import read_tables, write_tables

SMALL_ATTACK = {
    "num_examples": [4, 8],
    "num_search_trials": 2,
    "num_rerun_seeds": 2,
    "num_steps_min": 2,
    "num_steps_max": 4,
    "batch_sizes": [4],
}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all commands here: what several need, floors above all, is built once."""
    return tmp_path_factory.mktemp("cli") / "cache"


@pytest.fixture
def trial_file(data_file: Path, encoder_folder: Path, tmp_path: Path, cache_dir: Path) -> Path:
    document = {
        "data": {"source": str(data_file), "max_length": 24},
        "encoder": {"name": str(encoder_folder)},
        "train": {"num_outer_steps": 4, "adversary": {"num_steps": 1}},
        "attack": SMALL_ATTACK,
        "scratch": {"enabled": False},
        "runtime": {"cache_dir": str(cache_dir)},
    }
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def sweep_folder(trial_file: Path, tmp_path: Path) -> Path:
    """What a sweep of two searched trials leaves for `frontier` and `best`."""
    folder = tmp_path / "runs" / "demo"
    settings = trial_file.read_text()
    points = [
        Point(trial_id="tuned", method="tuned", desired=0.95, harmful=0.9, is_reference=True),
        Point(trial_id="t0", method="mlac", desired=0.94, harmful=0.7, metrics={"desired/accuracy": 0.94}),
        Point(trial_id="t1", method="mlac", desired=0.90, harmful=0.6),
        Point(trial_id="t2", method="mlac", desired=0.2, harmful=0.5, feasible=False),
    ]
    for point in points:
        (folder / "trials" / point.trial_id).mkdir(parents=True)
        (folder / "trials" / point.trial_id / "config.yaml").write_text(settings)
    (folder / "sweep.yaml").write_text("name: demo\n")
    write_tables(points, folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_train_then_attack_what_it_exported(
    capsys: pytest.CaptureFixture[str], trial_file: Path, tmp_path: Path, cache_dir: Path
) -> None:
    code, out, _ = run(capsys, "train", trial_file, "--out", tmp_path / "out")
    assert code == 0
    assert "worst-case harmful accuracy" in out
    for name, file in (("log", "train.parquet"), ("plot", "trajectory.png"), ("attacks", "attack.parquet")):
        assert any(line.split() == [name, str(tmp_path / "out" / file)] for line in out.splitlines())
    code, out, _ = run(
        capsys, "attack", tmp_path / "out" / "model", "--out", tmp_path / "attack", "--config", trial_file,
        "--set", f"runtime.cache_dir={cache_dir}",
    )  # fmt: skip
    assert code == 0
    assert "head start" in out
    assert "ten times the search would" in " ".join(out.split())
    assert "fewer than 3 sizes n with a valid result" in " ".join(out.split())
    assert (tmp_path / "attack" / "strength.png").read_bytes().startswith(b"\x89PNG")
    trained = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    attacked = json.loads((tmp_path / "attack" / "metrics.json").read_text())
    assert ("strength/search_accuracy" in attacked) != ("the search would find cannot be told" in out)
    for name in ("harmful/worst_accuracy", "desired/accuracy", "regret/accuracy"):
        assert attacked[name] == pytest.approx(trained[name], abs=1e-6)


def test_failed_and_uninformative_checks_are_said_with_what_they_saw() -> None:
    result = TrialResult(
        trial_id="t", config_hash="0", method="mlac", seed=0, status=Status.COMPLETE, metrics={}, output_dir=Path(),
        failed_checks={"label_flip": "seen"}, uninformative_checks={"collapse": "fails on both"},
    )  # fmt: skip
    assert audit_lines(result) == ["audit, label flip: FAILED: seen", "audit, collapse: uninformative: fails on both"]


def test_a_training_that_stops_itself_says_why_and_where_its_log_lies(
    capsys: pytest.CaptureFixture[str], trial_file: Path, tmp_path: Path
) -> None:
    bound = "train.validation={every_steps: 2, min_desired_accuracy: 1.0, patience: 0}"
    for _ in range(2):
        code, out, err = run(capsys, "train", trial_file, "--set", bound, "--out", tmp_path / "out")
        assert code == 1
        assert "error: training stopped at outer step 2: the desired accuracy on held-out examples is 0." in err
        assert str(tmp_path / "out" / "train.parquet") in out
        assert "harmful accuracy" not in out


def test_attack_takes_a_hugging_face_folder_that_it_did_not_write(
    capsys: pytest.CaptureFixture[str], trial_file: Path, bert_folder: Path, tmp_path: Path
) -> None:
    code, out, _ = run(capsys, "attack", bert_folder, "--config", trial_file, "--out", tmp_path / "attack")
    assert code == 0
    assert "released" in out
    assert (tmp_path / "attack" / "attack.parquet").exists()


def test_method_and_set_change_the_trial(capsys: pytest.CaptureFixture[str], trial_file: Path, tmp_path: Path) -> None:
    code, _, _ = run(
        capsys, "train", trial_file, "--method", "tuned", "--set", "train.num_outer_steps=3", "--out", tmp_path / "out"
    )
    assert code == 0
    train = load_settings(TrialSettings, tmp_path / "out" / "config.yaml").train
    assert (train.method, train.num_outer_steps) == ("tuned", 3)


def test_frontier_prints_the_table_and_draws(capsys: pytest.CaptureFixture[str], sweep_folder: Path) -> None:
    code, out, _ = run(capsys, "frontier", sweep_folder)
    assert code == 0
    assert "t0" in out
    assert "t1" in out
    assert (sweep_folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert '"title":"demo"' in (sweep_folder / "frontier.html").read_text()
    code, out, _ = run(capsys, "frontier", sweep_folder, sweep_folder)
    assert code == 0
    assert "cannot be told apart; 95 % interval" in out
    assert run(capsys, "frontier", sweep_folder, "nowhere")[0] == 2


def test_sweeps_that_were_not_measured_alike_are_compared_by_force_alone(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path
) -> None:
    other = sweep_folder.parent / "other"
    shutil.copytree(sweep_folder, other)
    (other / "sweep.yaml").write_text("{name: other, seed: 5, trial: {attack: {num_examples: [7], seed: 3}}}")
    code, _, err = run(capsys, "frontier", sweep_folder, other)
    assert code == 2
    assert "trial.attack.num_examples is [20, 50, 100, 200] in demo, [7] in other" in " ".join(err.split())
    assert "--force" in err
    assert "seed" not in err
    code, out, _ = run(capsys, "frontier", sweep_folder, other, "--force")
    assert code == 0
    assert "not alike: trial.attack.num_examples" in out


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ([], "t1"),
        (["--min-desired", "0.93"], "t0"),
        (["--rule", "trial", "--trial", "tuned"], "tuned"),
        (["--rule", "weighted", "--weight", "0.9"], "t1"),
        (["--rule", "weighted", "--weight", "0.1"], "t0"),
        (["--rule", "knee"], "t1"),
        (["--trial", "tuned"], "tuned"),
        (["--weight", "0.1"], "t0"),
        (["--rule", "constrained", "--min-desired", "0.93"], "t0"),
    ],
)
def test_best_writes_a_config_that_train_takes(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, tmp_path: Path, arguments: list[str], chosen: str
) -> None:
    out = tmp_path / "best.yaml"
    code, _, _ = run(capsys, "best", sweep_folder, "--out", out, *arguments)
    assert code == 0
    origin = load_settings(TrialSettings, out).origin
    assert origin is not None
    assert (origin.sweep, origin.trial_id) == ("demo", chosen)


def test_results_of_before_scratch_are_said_to_be_so_once(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, tmp_path: Path
) -> None:
    """In tables and by `best`; a trial that is no better than scratch is refused, and what is kept is drawn."""
    note, out = "measured without scratch: no head start kept is known; attack again to get it", tmp_path / "best.yaml"
    for arguments in (["frontier", sweep_folder], ["best", sweep_folder, "--out", out]):
        code, said, _ = run(capsys, *arguments)
        assert (code, said.count(note)) == (0, 1)
    assert not (sweep_folder / "kept.png").exists()
    measured = {"kept/harmful": 0.3, "kept/benign": 0.8, "scratch/desired_accuracy": 0.95}
    points = [
        dataclasses.replace(point, metrics=measured | {"scratch/dominates": float(point.trial_id == "t0")})
        for point in read_tables(sweep_folder)
    ]
    write_tables(points, sweep_folder)
    code, said, _ = run(capsys, "frontier", sweep_folder)
    assert (code, note in said) == (0, False)
    assert "kept benign" in said
    assert (sweep_folder / "kept.png").read_bytes().startswith(b"\x89PNG")
    code, said, err = run(capsys, "best", sweep_folder, "--trial", "t0", "--out", out)
    assert code == 2
    assert "trial 't0' is no better than training from scratch" in err
    assert note not in run(capsys, "best", sweep_folder, "--out", out)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "knee", "--trial", "t0"], "a trial (t0) belongs to rule 'trial'"),
        (["--rule", "constrained", "--weight", "0.3"], "belongs to rule 'weighted'"),
        (["--trial", "t0", "--weight", "0.3"], "a trial (t0) belongs to rule 'trial'"),
        (["--trial", "t0", "--min-desired", "0.9"], "a trial (t0) belongs to rule 'trial'"),
    ],
)
def test_best_refuses_what_its_rule_does_not_read(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "best.yaml"
    code, _, err = run(capsys, "best", sweep_folder, "--out", out, *arguments)
    assert code == 2
    assert message in err
    assert not out.exists()


def test_options_that_mean_nothing_together_are_refused(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, trial_file: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "best.yaml")
    for arguments, message in (
        (["best", "mlflow:0123", "--trial", "t0", *out], "mlflow:0123 is one trial already"),
        (["best", "mlflow:0123", "--rule", "knee", *out], "mlflow:0123 is one trial already"),
        (["register", sweep_folder, "--name", "m", "--trial", "t0", "--min-desired", "0.9"], "give one of them"),
        (["sweep", sweep_folder / "sweep.yaml", "--resume", "--dry-run"], "without --resume and --fork"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert message in err


def test_a_sweep_is_found_by_its_name(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweep_folder.parent.parent)
    assert run(capsys, "frontier", "demo")[0] == 0
    code, _, err = run(capsys, "frontier", "runs/demo/sweep.yaml")
    assert (code, "is a file, and a sweep's folder or name is asked for; write runs/demo" in err) == (2, True)
    code, _, err = run(capsys, "frontier", "dem")
    assert code == 2
    assert "did you mean 'demo'?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "none.yaml does not exist"),
        (["train", "TRIAL", "--set", "train.bogus=1"], "unknown setting 'train.bogus'"),
        (["train", "TRIAL", "--set", "data.source=none.parquet"], "none.parquet"),
        (["train", "TRIAL", "--set", "data.harmful_column=sex"], "'sex'"),
        (["train", "TRIAL", "--set", "attack.num_examples=[5000]"], "5000"),
        (["train", "TRIAL", "--set", "train.optimizer=Adem"], "train.optimizer: torch.optim has no 'Adem'"),
        (["train", "TRIAL", "--set", "train.schedule=LambdaLR"], "train.schedule 'LambdaLR' cannot be used"),
        (["train", "TRIAL", "--set", "encoder.name=./nowhere"], "./nowhere"),
        (["sweep", "TRIAL"], "a trial is run by `sdm-ray train "),
        (["attack", "./nowhere"], "./nowhere"),
        (["frontier", "nowhere"], "no sweep 'nowhere'"),
        (["best", "nowhere"], "no sweep 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], trial_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(trial_file) if argument == "TRIAL" else argument for argument in arguments]
    extra = ["--out", str(tmp_path / "out")] if arguments[0] in ("train", "attack") else []
    code, _, err = run(capsys, *arguments, *extra)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trial.data.source=none.parquet", "none.parquet"),
        ("trial.data.harmful_column=sex", "'sex'"),
        ("trial.attack.num_examples=[5000]", "n = 5000"),
        ("trial.attack.families=[magic]", "'magic' is not known"),
        ("trial.encoder.name=./nowhere", "./nowhere"),
        ("space={train.bogus: {type: int, low: 1, high: 2}}", "train.bogus"),
        ("resources.cpus_per_trial=4096", "4096"),
        ("final={attack: {num_examples: [6000]}}", "n = 6000"),
        ("trial.rungs=[{step: 2, attack: {num_examples: [7000]}}]", "n = 7000"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], trial_file: Path, tmp_path: Path, assignment: str, message: str
) -> None:
    sweep_file = tmp_path / "sweep.yaml"
    document = {"name": "demo", "output_dir": str(tmp_path / "runs"), "trial": yaml.safe_load(trial_file.read_text())}
    document["space"] = {"train.learning_rate": {"type": "float", "low": 0.001, "high": 0.01}}
    sweep_file.write_text(yaml.safe_dump(document))
    code, _, err = run(capsys, "sweep", sweep_file, "--set", assignment)
    assert code == 2
    assert message in err
    assert not list((tmp_path / "runs").glob("demo/trials/*"))


def test_all_that_is_wrong_is_said_before_torch_is_imported(trial_file: Path, tmp_path: Path) -> None:
    sweep_file = tmp_path / "sweep.yaml"
    space = {"train.learning_rate": {"type": "float", "low": 0.001, "high": 0.01}}
    sweep_file.write_text(yaml.safe_dump({"trial": yaml.safe_load(trial_file.read_text()), "space": space}))
    changes = (
        "trial.attack.families=[fine_tun]", "objectives=[{metric: desired/accurac, direction: maximize}]",
        "trial.runtime.device=cuda",
    )  # fmt: skip
    code = f"""
import sys
from sdm_ray.cli import main
try:
    main(["sweep", {str(sweep_file)!r}, *[a for c in {changes!r} for a in ("--set", c)], *sys.argv[1:]])
except SystemExit as stop:
    assert stop.code == 2 and "torch" not in sys.modules, sys.modules.get("torch")
"""
    for option in ([], ["--dry-run"]):
        done = subprocess.run([sys.executable, "-c", code, *option], capture_output=True, text=True, check=True)
        lines = done.stderr.splitlines()
        assert lines[0] == "error: 3 faults:"
        assert "did you mean 'desired/accuracy'?" in lines[1]
        assert "'fine_tun' is not known; did you mean 'fine_tune'?" in lines[2]
        assert "hides the GPUs" in lines[3]


def test_no_qualifying_point_says_what_there_is(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run(capsys, "best", sweep_folder, "--min-desired", "0.99", "--out", tmp_path / "best.yaml")
    assert code == 2
    assert "0.9400" in err
    assert not (tmp_path / "best.yaml").exists()


def test_an_unwritable_output_is_a_failure(
    capsys: pytest.CaptureFixture[str], trial_file: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, _, err = run(capsys, "train", trial_file, "--out", blocked / "out")
    assert code == 1
    assert "cannot write" in err


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "none.yaml", "--debug")
    assert code == 2
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENAMETOOLONG, "", "/x"), "error: cannot use /x: File name too long; shorten the name"),
        (OSError(errno.ENOSPC, "", "/x"), "error: cannot use /x: No space left on device; free space"),
        (OSError(errno.EACCES, ""), "error: Permission denied; correct its permissions"),
        (OSError("strange"), "internal error: OSError: strange (--debug shows where)"),
        (KeyError("x"), "internal error: KeyError: 'x' (--debug shows where)"),
    ],
)
def test_what_the_file_system_refuses_is_no_internal_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sdm_ray.cli.diagnosis.run", fail)
    code, _, shown = run(capsys, "doctor")
    assert code == 1
    assert shown.startswith(said)


@pytest.mark.parametrize("document", ["trial", "sweep"])
def test_schema_is_json(capsys: pytest.CaptureFixture[str], document: str) -> None:
    code, out, _ = run(capsys, "schema", document)
    assert code == 0
    assert json.loads(out)["additionalProperties"] is False


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"sdm-ray {sdm_ray.__version__}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", sdm_ray.__version__)


@pytest.mark.parametrize(
    ("given", "own", "others"),
    [((), logging.WARNING, logging.WARNING), (("-v",), logging.INFO, logging.WARNING), (("-vv",), 10, 10)],
)
def test_more_is_said_when_asked_for_anywhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], own: int, others: int
) -> None:
    """The package's own log with `-v`, and that of libraries with `-vv`."""
    root, package = logging.getLogger(), logging.getLogger("sdm_ray")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    monkeypatch.setattr(package, "level", logging.NOTSET)
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]
    assert run(capsys, "schema", "trial", *given)[0] == 0
    levels = (logging.getLogger("sdm_ray.data").getEffectiveLevel(), logging.getLogger("other").getEffectiveLevel())
    assert levels == (own, others)


def test_status_lists_sweeps(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below `runs/`, or in the folder that is named; one that cannot be read does not hide the others."""
    monkeypatch.chdir(tmp_path / "runs")
    code, _, err = run(capsys, "status")
    assert (code, "runs holds no sweep" in err) == (2, True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "sweep.yaml").write_text("sede: 1")
    code, out, _ = run(capsys, "status")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert "interrupted" in rows["demo"]
    assert "0 of 16" in rows["demo"]
    assert "cannot be read" in rows["broken"]
    listed = json.loads(run(capsys, "status", tmp_path / "runs", "--json")[1])["sweeps"]
    problems = {Path(sweep["folder"]).name: sweep.get("problem", "") for sweep in listed}
    assert problems.keys() == {"demo", "broken"}
    assert problems["demo"] == ""
    assert "unknown setting 'sede'; did you mean 'seed'?" in problems["broken"]


def test_json_for_programs(
    capsys: pytest.CaptureFixture[str], sweep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but JSON on stdout, with what the tables say."""
    status = json.loads(run(capsys, "status", sweep_folder, "--json")[1])
    assert (status["sweep"], status["state"], status["num_trials"], status["front"]) == ("demo", "interrupted", 16, [])
    frontier = json.loads(run(capsys, "frontier", sweep_folder, sweep_folder, "--json")[1])
    assert [point["trial_id"] for point in frontier["points"] if point["on_front"]] == ["t0", "t1"]
    assert frontier["comparisons"][0] | {"low": 0, "high": 0} == {
        "sweep": "demo", "hypervolume": frontier["hypervolume"], "num_trials": 3, "difference": 0.0, "low": 0,
        "high": 0, "verdict": "cannot be told apart", "not_alike": [],
    }  # fmt: skip
    assert Path(frontier["files"]["picture"]).is_file()
    out = tmp_path / "best.yaml"
    best = json.loads(run(capsys, "best", sweep_folder, "--out", out, "--json")[1])
    assert (best["trial_id"], best["config"], best["settings"]["train"]["num_outer_steps"]) == ("t1", str(out), 4)
    assert load_settings(TrialSettings, out).origin is not None
    broken = Check("ray", "fail", "not installed")
    monkeypatch.setattr(diagnosis, "diagnose", lambda *args, **kwargs: [Check("python", "ok", "fine"), broken])
    code, said, _ = run(capsys, "doctor", "--json")
    assert code == 1
    assert json.loads(said) == {
        "works": False,
        "checks": [
            {"name": "python", "status": "ok", "detail": "fine"},
            {"name": "ray", "status": "fail", "detail": "not installed"},
        ],
    }


def test_an_empty_frontier_is_an_error_for_programs_too(capsys: pytest.CaptureFixture[str], sweep_folder: Path) -> None:
    write_tables([point for point in read_tables(sweep_folder) if point.trial_id in ("tuned", "t2")], sweep_folder)
    code, out, err = run(capsys, "frontier", sweep_folder, "--json")
    assert code == 2
    assert not [point for point in json.loads(out)["points"] if point["on_front"]]
    assert "the frontier is empty" in err


def test_doctor_lists_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code in (0, 1)
    assert "torch" in out
    assert "mlflow" in out


@pytest.mark.parametrize("command", ["", "sweep", "train", "attack", "frontier", "best", "schema", "doctor"])
def test_help_reads_everywhere(command: str) -> None:
    arguments = [*([command] if command else []), "--help"]
    done = subprocess.run([sys.executable, "-m", "sdm_ray", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Usage" in done.stdout
