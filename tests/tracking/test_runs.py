"""Tracked runs: found by id, attacked again, and a sweep's frontier from them alone."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest

from sdm_ray.cli.app import main
from sdm_ray.config import TrackingSettings, TrialSettings, content_hash, load_settings, to_yaml
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import write_tables
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.records.tracked import tracked_points
from sdm_ray.tracking import open_tracker
from sdm_ray.tracking.address import is_reference, sqlite_uri
from sdm_ray.tracking.artifacts import add_to_run, download, model_folder
from sdm_ray.tracking.naming import SEPARATOR
from sdm_ray.tracking.runs import connect, find_run, run_of_trial, sibling_runs
from sdm_ray.trial.run import run_trial
from tests.fakes import sweep as sweep_fakes
from tests.trial.test_run import settings, with_method  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracked folder with a sweep's run and that of a trial, without a model."""
    folder = tmp_path_factory.mktemp("runs")
    track(folder / "unit", folder / "unit" / "trials" / "t0", log_models=False)
    return folder


def track(sweep_dir: Path, trial_dir: Path, *, log_models: bool, weights: str = "w") -> None:
    trial_dir.mkdir(parents=True, exist_ok=True)
    tracker = open_tracker(TrackingSettings(log_models=log_models), sweep_dir)
    tracker.start_sweep("unit", {}, {})
    tracker.start_trial("t0", {"seed": 3}, {"method": "mlac"})
    tracker.finish_trial(
        TrialResult(
            trial_id="t0", config_hash="abc", method="mlac", seed=0, status=Status.COMPLETE,
            metrics={"desired/accuracy": 0.9}, output_dir=trial_dir, provenance={"weights": weights},
        )
    )  # fmt: skip
    tracker.finish_sweep("complete")


def ids(file: Path) -> dict[str, str]:
    """Ids of runs by the first word of their names."""
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT run_uuid, name FROM runs").fetchall()
    return {name.partition(SEPARATOR)[0]: run_id for run_id, name in rows}


def test_a_run_is_found_by_its_id(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = runs / "mlflow.db"
    known = ids(file)
    run = find_run(f"mlflow:{known['t0']}", output_dir=runs)
    assert (run.name, run.trial_id, run.status, run.is_sweep) == ("t0", "t0", "FINISHED", False)
    assert run.metrics == {"desired/accuracy": 0.9}
    assert run.params == {"seed": "3"}
    assert sorted(sibling.trial_id for sibling in sibling_runs(run)) == ["-", "t0"]
    assert find_run(known["unit"], uri=sqlite_uri(file), output_dir=runs / "elsewhere").is_sweep
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(file))
    assert find_run(known["t0"], output_dir=runs / "elsewhere").run_id == known["t0"]
    assert is_reference("mlflow:1")
    assert not is_reference("models/mlflow")


def test_what_is_no_run_is_said_with_the_nearest(runs: Path) -> None:
    file = runs / "mlflow.db"
    known = ids(file)
    with pytest.raises(UsageError, match=rf"runs of that name: {known['t0']}"):
        find_run("mlflow:t0", output_dir=runs)
    for uri in (None, sqlite_uri(file)):
        with pytest.raises(UsageError, match=rf"did you mean {known['t0']} \(t0\)\?"):
            find_run(known["t0"][:-2] + "zz", output_dir=runs, uri=uri)
    with pytest.raises(UsageError, match="names no run; write mlflow:RUN_ID"):
        find_run("mlflow:", output_dir=runs)
    with pytest.raises(UsageError, match="which holds no tracked sweep"):
        find_run("mlflow:1", output_dir=runs / "empty")
    with pytest.raises(UsageError, match=r"there is no file .*absent\.db"):
        find_run("mlflow:1", uri=f"sqlite:///{runs}/absent.db")
    with pytest.raises(RunError, match="does not answer"):
        find_run("mlflow:1", uri="http://127.0.0.1:1")


def test_a_model_that_is_nowhere_is_said(runs: Path) -> None:
    known = ids(runs / "mlflow.db")
    run = find_run(known["t0"], output_dir=runs)
    with pytest.raises(UsageError, match=r"has no model: .* sweep with tracking\.log_models=true"), model_folder(run):
        pass
    parent = find_run(known["unit"], output_dir=runs)
    with pytest.raises(UsageError, match="is that of the sweep 'unit'"), model_folder(parent):
        pass
    with pytest.raises(UsageError, match=r"has no sweep\.yaml"):
        tracked_points(known["t0"], output_dir=runs)


def test_an_artifact_cannot_leave_its_folder(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = find_run(ids(runs / "mlflow.db")["t0"], output_dir=runs)
    (tmp_path / "secret").write_text("1")
    (tmp_path / "file").write_text("2")
    add_to_run(run, metrics={}, tags={}, files=[tmp_path / "file"], folder="attacks/a")
    assert download(run, "attacks/b", tmp_path) is None
    found = download(run, "attacks/a", tmp_path / "good")
    assert found is not None
    assert (found / "file").read_text() == "2"

    def leave(client: object, run_id: str, path: str, into: str) -> str:
        link = Path(into) / "a"
        link.mkdir(parents=True)
        (link / "file").symlink_to(tmp_path / "secret")
        return str(link)

    monkeypatch.setattr("mlflow.MlflowClient.download_artifacts", leave)
    with pytest.raises(RunError, match=r"leaves its folder .*do not trust this run"):
        download(run, "attacks/a", tmp_path / "bad")


def plain(points: list[Point]) -> list[Point]:
    return [dataclasses.replace(point, metrics={}) for point in points]


@pytest.mark.usefixtures("in_process")
def test_the_frontier_comes_back_from_the_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two seeds a point, a constraint, a final attack: the points equal those of the sweep's own tables."""
    monkeypatch.chdir(tmp_path)
    changes = {"search__num_seeds": 2, "search__max_desired_drop": 0.1, "final": "{num_points: 1}"}
    made = sweep_fakes.settings(Path("runs"), **changes, references="[tuned, random]", tracking__enabled=True)
    functions = {"trial_function": "tests.fakes.sweep:seeded", "final_function": "tests.fakes.sweep:final"}
    outcome = run_sweep(made, view=SilentView(), **functions)
    assert not outcome.failures
    known = ids(outcome.folder.parent / "mlflow.db")
    name, points = tracked_points(f"mlflow:{known['t0000']}")
    assert name == "fake"
    assert plain(points) == plain(outcome.points)
    assert any(point.superseded for point in points)
    assert points == outcome.points, "no metric is missing"
    uri = sqlite_uri(outcome.folder.parent / "mlflow.db")
    main_exits(["frontier", f"mlflow:{known['fake']}", "--tracking-uri", uri])
    assert "Pareto frontier" in capsys.readouterr().out
    folder = Path("runs") / f"fake-{known['fake'][:8]}"
    assert {path.name for path in folder.iterdir()} == {
        "frontier.parquet", "frontier.json", "frontier.png", "frontier.html",
    }  # fmt: skip


def main_exits(arguments: list[str], code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == code


def test_a_tracked_model_is_attacked_again(
    settings: TrialSettings,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From its folder, then from its artifacts when the folder is gone; other weights are refused."""
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "runs" / "unit"
    trial = sweep / "trials" / "t0"
    result = run_trial(with_method(settings, "tuned"), trial, trial_id="t0")
    track(sweep, trial, log_models=True, weights=result.provenance["weights"])
    run_id = ids(sweep.parent / "mlflow.db")["t0"]
    config = shutil.copy(trial / "config.yaml", tmp_path)
    attack = ["attack", f"mlflow:{run_id}", "--config", config, "--set", "attack.num_rerun_seeds=3", "--out"]
    main_exits([*attack, "first"])
    assert f"run {run_id} (t0) has it as attack trial-" in " ".join(capsys.readouterr().out.split())
    run = find_run(run_id)
    (label,) = [name.removeprefix("attack.") for name in run.tags if name.startswith("attack.")]
    assert "head start" in run.tags[f"attack.{label}"]
    worst = run.metrics[f"again/{label}/harmful/worst_accuracy"]
    assert run.metrics["desired/accuracy"] == 0.9, "the trial's own stay"
    found = download(run, f"attacks/{label}", tmp_path / "there")
    assert found is not None
    assert {"attack.parquet", "audit.json", "attack.png", "strength.png"} <= {path.name for path in found.iterdir()}
    other = tmp_path / "runs" / "other"
    shutil.copytree(trial, other / "trials" / "t0")
    shutil.rmtree(trial)
    main_exits([*attack, "second"])
    assert find_run(run_id).metrics[f"again/{label}/harmful/worst_accuracy"] == worst
    track(other, other / "trials" / "t0", log_models=False, weights="of another model")
    capsys.readouterr()
    main_exits(["attack", f"mlflow:{run_of_trial(other, 't0').run_id}"], 1)
    assert "are not those that run" in capsys.readouterr().err


def test_a_training_is_linked_to_the_sweep_of_its_config(
    settings: TrialSettings,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Path("runs") / "unit"
    (sweep / "trials" / "t0").mkdir(parents=True)
    (sweep / "trials" / "t0" / "config.yaml").write_text(to_yaml(settings))
    track(sweep.absolute(), sweep.absolute() / "trials" / "t0", log_models=False)
    (sweep / "sweep.yaml").write_text("name: unit\n")
    write_tables([Point(trial_id="t0", method="mlac", desired=0.9, harmful=0.5)], sweep)
    main_exits(["best", "unit", "--out", "best.yaml"])
    origin = load_settings(TrialSettings, Path("best.yaml")).origin
    assert origin is not None
    assert origin.tracking_uri == sqlite_uri(sweep.parent / "mlflow.db")
    main_exits(["best", f"mlflow:{ids(sweep.parent / 'mlflow.db')['t0']}", "--out", "same.yaml"])
    same = load_settings(TrialSettings, Path("same.yaml"))
    assert content_hash(same) == content_hash(settings)
    assert same.origin is not None
    assert (same.origin.trial_id, same.origin.rule, same.origin.sweep_id) == ("t0", "run id", origin.sweep_id)
    uri = sqlite_uri(sweep.parent / "mlflow.db")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path.parent)
        run_id = ids(Path(uri.removeprefix("sqlite:///")))["t0"]
        main_exits(["best", f"mlflow:{run_id}", "--tracking-uri", uri, "--out", str(tmp_path / "far.yaml")])
    assert Path("far.yaml").read_text() == Path("same.yaml").read_text()
    main_exits(["best", f"mlflow:{ids(sweep.parent / 'mlflow.db')['unit']}", "--out", "none.yaml"], 2)
    assert "has no config.yaml; name the run of a trial" in capsys.readouterr().err
    run_id = ids(sweep.parent / "mlflow.db")["t0"]
    connect(sqlite_uri(sweep.parent / "mlflow.db")).log_metric(run_id, "scratch/dominates", 1.0)
    capsys.readouterr()
    main_exits(["best", f"mlflow:{run_id}", "--out", "third.yaml"], 2)
    assert f"run {run_id} (t0) is no better than training from scratch" in capsys.readouterr().err
    assert not Path("third.yaml").exists()
    train = ["train", "best.yaml", "--method", "tuned", "--out", "larger"]
    main_exits(train)
    out, err = capsys.readouterr()
    assert f"tracking in MLflow at {sqlite_uri(sweep.parent / 'mlflow.db')} (that of the config's sweep)" in err
    assert "tracked mlflow ui --backend-store-uri" in out
    main_exits(train)
    known = ids(sweep.parent / "mlflow.db")
    assert f"/runs/{known['unit-t0']}" in out
    assert sorted(known) == ["t0", "unit", "unit-t0"], "resumed, it is the same run"
    run = find_run(known["unit-t0"])
    assert run.tags["mlflow.parentRunId"] == run.tags["origin.run_id"] == known["t0"]
    assert (run.tags["origin.sweep"], run.tags["origin.trial_id"], run.status) == ("unit", "t0", "FINISHED")
    assert run.metrics["harmful/worst_accuracy"] > 0
    assert run.metrics["train/desired_loss"] > 0
    assert run.params["train.method"] == "tuned"
    assert "mlflow.db" not in Path("larger/model/sdm_ray.json").read_text(), (
        "a release does not say where it was tracked"
    )
    main_exits([*train[:-1], "none", "--tracking-uri", "none"])
    assert len(ids(sweep.parent / "mlflow.db")) == 3
    (sweep.parent / "mlflow.db").unlink()
    shutil.rmtree(sweep.parent / "mlartifacts", ignore_errors=True)
    sweep.rename("gone")
    main_exits([*train[:-1], "away", "--set", f"origin.tracking_uri={uri}"])
    assert "not tracked: tracking URI" in capsys.readouterr().err
    main_exits([*train[:-1], "asked", "--tracking-uri", "http://127.0.0.1:1"], 1)


def test_what_was_moved_is_found_where_it_lies_now(tmp_path: Path) -> None:
    """A database says where artifacts and models lay before a move; now they are beside it and in the named folder."""
    before, after = tmp_path / "before", tmp_path / "after"
    track(before / "unit", before / "unit" / "trials" / "t0", log_models=False)
    (before / "unit" / "trials" / "t0" / "model").mkdir()
    run_id = ids(before / "mlflow.db")["t0"]
    before.rename(after)
    (after / "unit").rename(after / "renamed")
    database = sqlite_uri(after / "mlflow.db")
    run = run_of_trial(after / "renamed", "t0", uri=database)
    with model_folder(run) as folder:
        assert folder == after / "renamed" / "trials" / "t0" / "model"
    kept = after / "mlartifacts" / run_id / "artifacts"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "into").mkdir()
    found = download(find_run(run_id, uri=database), "config.yaml", tmp_path / "into")
    assert found is not None
    assert found.read_text() == "seed: 1\n"
    assert download(find_run(run_id, uri=database), "other.yaml", tmp_path / "into") is None
    shutil.rmtree(after / "mlartifacts")
    with pytest.raises(
        UsageError, match=rf"lie in {before}/mlartifacts/.*, and that folder is gone; put mlartifacts beside"
    ):
        download(find_run(run_id, uri=database), "config.yaml", tmp_path / "into")
