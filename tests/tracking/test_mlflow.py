"""One parent run a sweep and one child run a trial, whatever is retried, resumed or interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from sdm_ray.config import TrackingSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.tracking import client as client_module
from sdm_ray.tracking import mlflow as tracker_module
from sdm_ray.tracking import open_tracker
from sdm_ray.tracking.address import sqlite_file, sqlite_uri
from sdm_ray.tracking.client import create_database, new_client
from sdm_ray.tracking.outbox import SWEEP_RUN, Journal, RejectedError
from sdm_ray.tracking.runs import find_run
from sdm_ray.tracking.sink import SWEEP_TAG, TRIAL_TAG, MlflowSink, _rejections
from tests.fakes.results import trial_result
from tests.tracking.test_series import all_metrics

SETTINGS = {"name": "unit", "search": {"num_trials": 4}, "storage": None}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once."""
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    new_client(sqlite_uri(path)).search_experiments()
    return path


@pytest.fixture
def sweep_dir(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "my sweep"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def client_of(sweep_dir: Path) -> Any:
    return new_client(sqlite_uri(sweep_dir / "mlflow.db"))


def runs_of(sweep_dir: Path) -> dict[str, Any]:
    """Runs by trial id; fails if an id has two."""
    client = client_of(sweep_dir)
    experiment = client.get_experiment_by_name("sdm-ray")
    found = client.search_runs([experiment.experiment_id])
    runs = {run.data.tags[TRIAL_TAG]: run for run in found}
    assert len(runs) == len(found), "a trial has more than one run"
    return runs


def result_of(trial_id: str, output_dir: Path, status: Status = Status.COMPLETE, **metrics: float) -> TrialResult:
    return trial_result(
        trial_id,
        status=status,
        metrics={"desired/accuracy": 0.9, **metrics},
        output_dir=output_dir,
        error="diverged" if status is Status.FAILED else None,
        provenance={"data": "d1"},
    )


def started(sweep_dir: Path, uri: str | None = None) -> Any:
    tracker = open_tracker(TrackingSettings(uri=uri), sweep_dir)
    tracker.start_sweep("unit", SETTINGS, {"config_hash": "abc"})
    return tracker


def test_a_sweep_becomes_a_parent_run_with_a_child_run_for_each_trial(sweep_dir: Path) -> None:
    folder = sweep_dir / "trials" / "t0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (sweep_dir / "frontier.json").write_text("{}")
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {"train": {"learning_rate": 1e-3}}, {"method": "mlac"})
    tracker.log("t0", {"train/loss": 1.0, "bad": float("nan")}, 10)
    tracker.log("t0", {"train/loss": 0.5}, 20)
    tracker.finish_trial(result_of("t0", folder, **{"harmful/n50/accuracy": 0.6}))
    tracker.log_sweep_artifacts([sweep_dir / "frontier.json"])
    tracker.finish_sweep("complete")

    runs = runs_of(sweep_dir)
    parent, child = runs[SWEEP_RUN], runs["t0"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.params == {"name": "unit", "search.num_trials": "4"}
    assert parent.data.tags["config_hash"] == "abc"
    assert parent.data.tags["version.torch"]
    assert child.data.params == {"train.learning_rate": "0.001"}
    assert child.data.metrics == {"train/loss": 0.5, "desired/accuracy": 0.9, "harmful/accuracy_by_n": 0.6}
    assert child.data.tags["method"] == "mlac"
    assert child.data.tags["provenance.data"] == "d1"
    client = client_of(sweep_dir)
    history = client.get_metric_history(child.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(10, 1.0), (20, 0.5)]
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["config.yaml"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["frontier.json"]
    assert (sweep_dir / "mlartifacts").is_dir()


@pytest.mark.parametrize("before", [False, True])
def test_a_copy_does_not_write_over_the_runs_of_its_original(sweep_dir: Path, tmp_path: Path, before: bool) -> None:
    """Also one that began before a folder was on record: its database says where its artifacts are."""
    (sweep_dir / "frontier.json").write_text("original")
    tracker = started(sweep_dir)
    tracker.log_sweep_artifacts([sweep_dir / "frontier.json"])
    tracker.finish_sweep("complete")
    if before:
        (sweep_dir / "tracking" / "place.json").unlink()
    copy = shutil.copytree(sweep_dir, tmp_path / "a copy")
    with pytest.raises(UsageError, match=r"a copy is a copy of .*my sweep, .* remove .*tracking and .*mlflow.db and"):
        started(copy)
    sweep_dir.rename(tmp_path / "gone")
    started(copy).finish_sweep("complete")  # MLflow's client keeps addresses of artifacts for a process
    (run,) = runs_of(copy).values()
    assert run.info.artifact_uri.startswith((copy / "mlartifacts").as_uri() + "/")
    (file,) = (copy / "mlartifacts").rglob("frontier.json")
    assert Path(unquote(urlsplit(run.info.artifact_uri).path)) == file.parent
    assert not sweep_dir.exists()


def test_a_trial_is_a_few_metrics_with_steps_however_often_it_is_told(sweep_dir: Path) -> None:
    """Accuracy against n is one metric with n as its step; results that stand alone have step 0."""
    tracker = started(sweep_dir)
    metrics = all_metrics()
    tracker.start_trial("t0", {}, {}, name="t0 · weight 3.1")
    for step in (10, 20):
        tracker.log(
            "t0", {f"train/{index}": step + index for index in range(15)} | {Metric.rung_desired(step): 0.5}, step
        )
    result = dataclasses.replace(result_of("t0", sweep_dir), metrics=metrics)
    for _ in range(2):
        tracker.finish_trial(result)
    tracker.finish_sweep("complete")
    client, run = client_of(sweep_dir), runs_of(sweep_dir)["t0"]
    assert run.info.run_name == "t0 · weight 3.1"
    assert len(metrics) > 90
    assert len(run.data.metrics) <= 37

    def history(name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]

    assert history("harmful/accuracy_by_n") == [(n, metrics[Metric.harmful_accuracy(n)]) for n in (20, 100)]
    assert history("rung/desired_accuracy") == [(10, 0.5), (20, 0.5)]
    assert history("desired/accuracy") == [(0, metrics["desired/accuracy"])]
    training = {name: value for name, value in run.data.metrics.items() if name.startswith(("train/", "rung/"))}
    found = find_run(run.info.run_id, uri=sqlite_uri(sweep_dir / "mlflow.db"))
    assert found.metrics == metrics | training, "nothing is lost to those who read the run"


def test_a_sweep_has_metrics_over_trials_and_a_description_and_its_trials_stand_somewhere(sweep_dir: Path) -> None:
    """What is so already is not sent again, by this process or the next."""
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {}, {})
    for volume in (0.1, 0.1, 0.2):
        tracker.log_sweep({"sweep/hypervolume": volume}, 1)
    tracker.log_sweep({"sweep/hypervolume": 0.3}, 2)
    tracker.log_sweep({"sweep/hypervolume": 0.9}, 1)
    tracker.annotate({"t0": {"frontier": "front", "verdict": None}, "gone": {"frontier": "near"}}, description="| a |")
    tracker.finish_sweep("complete")
    again = started(sweep_dir)
    before = len(list(again._journal.records()))
    again.annotate({"t0": {"frontier": "front"}}, description="| a |")
    again.log_sweep({"sweep/hypervolume": 0.3}, 2)
    assert len(list(again._journal.records())) == before
    again.annotate({"t0": {"frontier": "dominated"}})
    again.finish_sweep("complete")
    runs = runs_of(sweep_dir)
    assert set(runs) == {SWEEP_RUN, "t0"}
    assert runs["t0"].data.tags["frontier"] == "dominated"
    assert "verdict" not in runs["t0"].data.tags
    parent = runs[SWEEP_RUN]
    assert parent.data.tags["mlflow.note.content"] == "| a |"
    history = client_of(sweep_dir).get_metric_history(parent.info.run_id, "sweep/hypervolume")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (1, 0.2), (2, 0.3)]


def test_records_that_are_delivered_twice_leave_the_same_run(sweep_dir: Path) -> None:
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {"a": 1}, {})
    tracker.finish_trial(dataclasses.replace(result_of("t0", sweep_dir), metrics=all_metrics()))
    tracker.annotate({"t0": {"frontier": "front"}}, description="text")
    tracker.finish_sweep("complete")
    records = list(Journal(sweep_dir / "tracking").records())
    before = runs_of(sweep_dir)
    client = client_of(sweep_dir)

    def histories() -> dict[str, list[Any]]:
        run = before["t0"]
        return {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}

    first = histories()
    sink = MlflowSink(sqlite_uri(sweep_dir / "mlflow.db"), "sdm-ray", None, before["t0"].data.tags[SWEEP_TAG])
    sink.apply(records)
    assert histories() == first
    after = runs_of(sweep_dir)
    assert {name: run.data.tags for name, run in after.items()} == {name: run.data.tags for name, run in before.items()}


@pytest.mark.parametrize(
    ("uri", "server"), [(None, "http://127.0.0.1:5000"), ("http://u:secret@host:1/", "http://u:***@host:1")]
)
def test_a_run_has_a_link_once_it_is_there(sweep_dir: Path, uri: str | None, server: str) -> None:
    tracker = open_tracker(TrackingSettings(uri=uri), sweep_dir)
    assert tracker.run_link("t0") == {}
    sink: Any = MlflowSink("", "", None, "")
    sink.experiment_id, sink._runs = "7", {"t0": "abc"}
    tracker._sink = sink  # type: ignore[attr-defined]
    assert tracker.run_link("t0") == {"mlflow_run": "abc", "mlflow_url": f"{server}/#/experiments/7/runs/abc"}
    assert tracker.run_link("t1") == {}


def test_data_and_encoder_are_inputs_of_a_trial(sweep_dir: Path) -> None:
    """With their digests; told again after a retry, they are there once."""
    tracker = started(sweep_dir)
    provenance = {"data": "d" * 64, "data_source": "runs/bios.parquet", "encoder": "e" * 64, "encoder_name": "org/bert"}
    result = dataclasses.replace(result_of("t0", sweep_dir), provenance=provenance)
    for _ in range(2):
        tracker.start_trial("t0", {}, {})
        tracker.finish_trial(result)
    tracker.finish_sweep("complete")
    inputs = client_of(sweep_dir).get_run(runs_of(sweep_dir)["t0"].info.run_id).inputs.dataset_inputs
    found = {given.tags[0].value: given.dataset for given in inputs}
    assert found.keys() == {"meta-training and attack", "encoder"}
    assert len(inputs) == 2
    data = found["meta-training and attack"]
    assert (data.name, data.digest) == ("bios.parquet", "d" * 36)
    assert json.loads(data.source) == {"uri": "runs/bios.parquet", "sha256": "d" * 64}
    assert found["encoder"].name == "bert"


@pytest.mark.parametrize("log_models", [False, True])
def test_released_models_are_uploaded_on_request(sweep_dir: Path, log_models: bool) -> None:
    folder = sweep_dir / "trials" / "t0"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"1")
    tracker = open_tracker(TrackingSettings(log_models=log_models), sweep_dir)
    tracker.start_sweep("unit", SETTINGS, {})
    tracker.start_trial("t0", {}, {})
    tracker.finish_trial(result_of("t0", folder))
    tracker.finish_sweep("complete")
    run_id = runs_of(sweep_dir)["t0"].info.run_id
    found = [file.path for file in client_of(sweep_dir).list_artifacts(run_id, "model")]
    assert found == (["model/model.safetensors"] if log_models else [])


@pytest.mark.parametrize("wanted", [False, True])
def test_the_machine_is_sampled_on_request(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = open_tracker(TrackingSettings(system_metrics=wanted), sweep_dir)
    tracker.start_sweep("unit", SETTINGS, {})
    time.sleep(3)
    tracker.finish_sweep("complete")
    parent = runs_of(sweep_dir)[SWEEP_RUN]
    assert ("system/cpu_utilization_percentage" in parent.data.metrics) is wanted
    assert parent.info.status == "FINISHED"
    assert not [thread for thread in threading.enumerate() if "System" in thread.name]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (Status.COMPLETE, "FINISHED"),
        (Status.INFEASIBLE, "FINISHED"),
        (Status.FAILED, "FAILED"),
        (Status.STOPPED, "KILLED"),
    ],
)
def test_how_a_trial_ended_shows(sweep_dir: Path, status: Status, shown: str) -> None:
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {}, {})
    tracker.finish_trial(result_of("t0", sweep_dir, status))
    tracker.finish_sweep("stopped")
    runs = runs_of(sweep_dir)
    assert runs["t0"].info.status == shown
    assert runs["t0"].data.tags["status"] == str(status)
    assert runs["t0"].data.tags.get("error") == ("diverged" if status is Status.FAILED else None)
    assert runs[SWEEP_RUN].info.status == "KILLED"


def test_a_retried_trial_reports_each_step_once(sweep_dir: Path) -> None:
    tracker = started(sweep_dir)
    for start in (0, 20):
        tracker.start_trial("t0", {"a": 1}, {})
        for step in range(start, start + 40, 10):
            tracker.log("t0", {"train/loss": 1 / (step + 1)}, step)
    for _ in range(2):
        tracker.finish_trial(result_of("t0", sweep_dir))
    tracker.finish_sweep("complete")
    run = runs_of(sweep_dir)["t0"]
    history = client_of(sweep_dir).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [0, 10, 20, 30, 40, 50]
    assert len(client_of(sweep_dir).get_metric_history(run.info.run_id, "desired/accuracy")) == 1


def test_a_resumed_sweep_goes_on_in_the_same_runs(sweep_dir: Path) -> None:
    first = started(sweep_dir)
    first.start_trial("t0", {"a": 1}, {})
    first.log("t0", {"train/loss": 1.0}, 10)
    first.start_trial("lost", {}, {})
    first._journal.wait_delivered(30)
    before = runs_of(sweep_dir)
    assert before["t0"].info.status == "RUNNING"
    # The first driver is killed here: it never finishes its sweep.
    second = open_tracker(TrackingSettings(), sweep_dir)
    second.start_sweep("unit", {**SETTINGS, "search": {"num_trials": 8}}, {})
    second.start_trial("t0", {"a": 1}, {})
    second.log("t0", {"train/loss": 1.0}, 10)
    second.log("t0", {"train/loss": 0.5}, 20)
    second.finish_trial(result_of("t0", sweep_dir))
    second.finish_sweep("complete")
    after = runs_of(sweep_dir)
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    history = client_of(sweep_dir).get_metric_history(after["t0"].info.run_id, "train/loss")
    assert [metric.step for metric in history] == [10, 20]
    assert after["lost"].info.status == "KILLED", "a trial whose process was lost does not stay RUNNING"
    assert after[SWEEP_RUN].data.params["search.num_trials"] == "4"
    assert after[SWEEP_RUN].data.tags["changed.search.num_trials"] == "8", "MLflow cannot change a param"


def test_a_run_whose_creation_was_answered_too_late_is_not_created_again(
    sweep_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    original = MlflowClient.create_run
    lost: list[str] = []

    def loses_first_answers(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = original(self, *args, **kwargs)
        if run.info.run_name not in lost:
            lost.append(run.info.run_name)
            raise ConnectionError("answer lost")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", loses_first_answers)
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {"a": 1}, {})
    tracker.log("t0", {"train/loss": 1.0}, 1)
    tracker.finish_sweep("complete")
    assert lost == ["unit", "t0"]
    runs = runs_of(sweep_dir)
    assert runs["t0"].data.params == {"a": "1"}
    assert runs["t0"].data.metrics == {"train/loss": 1.0}


def test_an_outage_in_the_middle_loses_and_repeats_nothing(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    original = MlflowClient.log_batch
    down = threading.Event()
    refused = threading.Event()

    def flaky(self: Any, *args: Any, **kwargs: Any) -> Any:
        if down.is_set():
            refused.set()
            raise ConnectionError("connection refused")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {}, {})
    tracker.log("t0", {"train/loss": 0.0}, 0)
    tracker._journal.wait_delivered(30)
    down.set()
    for step in range(1, 30):
        tracker.log("t0", {"train/loss": float(step)}, step)
    assert refused.wait(10)
    down.clear()
    tracker.finish_sweep("complete")
    run = runs_of(sweep_dir)["t0"]
    history = client_of(sweep_dir).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(30))


def test_a_run_deleted_by_a_user_costs_its_own_records_only(sweep_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {}, {})
    tracker.start_trial("t1", {}, {})
    tracker._journal.wait_delivered(30)
    client_of(sweep_dir).delete_run(runs_of(sweep_dir)["t0"].info.run_id)
    with caplog.at_level(logging.WARNING):
        tracker.log("t0", {"train/loss": 1.0}, 1)
        tracker.log("t1", {"train/loss": 2.0}, 1)
        tracker.finish_trial(result_of("t1", sweep_dir))
        tracker.finish_sweep("complete")
    assert runs_of(sweep_dir)["t1"].data.metrics["train/loss"] == 2.0
    assert any("skips a record" in record.getMessage() for record in caplog.records)


def test_the_hint_names_the_command_and_a_page_that_shows_the_trials(
    sweep_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = started(sweep_dir)
    for trial_id in ("t0", "t1"):
        tracker.start_trial(trial_id, {}, {})
    tracker.finish_sweep("complete")
    runs = {trial: run.info.run_id for trial, run in runs_of(sweep_dir).items() if trial != SWEEP_RUN}
    path, _, query = urlsplit(tracker.ui_hint().splitlines()[1]).fragment.partition("?")
    assert path == "/compare-runs"
    assert json.loads(parse_qs(query)["runs"][0]) == [runs["t0"], runs["t1"]]

    monkeypatch.setattr("sdm_ray.tracking.pages.MAX_COMPARED_RUNS", 1)
    command, page = tracker.ui_hint().splitlines()
    words = shlex.split(command)
    assert words[:2] == ["mlflow", "ui"]
    assert words[words.index("--backend-store-uri") + 1] == sqlite_uri(sweep_dir / "mlflow.db")
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--workers") + 1] == "1", "four processes for one person are three too many"
    fragment = urlsplit(page).fragment
    path, _, query = fragment.partition("?")
    values = parse_qs(query)
    assert values["compareRunsMode"] == ["CHART"]
    experiment_id = path.split("/")[2]
    found = client_of(sweep_dir).search_runs([experiment_id], unquote(values["searchFilter"][0]))
    assert {run.data.tags[TRIAL_TAG] for run in found} == {"t0", "t1"}


def test_a_new_database_does_not_delay_the_sweep(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, there, go_on = threading.Event(), threading.Event(), threading.Event()

    def slow(file: Path) -> None:
        seen.set()
        go_on.wait(30)
        there.set()
        shutil.copy(empty_database, file)

    monkeypatch.setattr("sdm_ray.tracking.client.create_database", slow)
    tracker = started(tmp_path / "sweep")
    tracker.start_trial("t0", {}, {})
    assert seen.wait(30)
    assert not there.is_set()
    go_on.set()
    assert "experiments" in tracker.ui_hint(), "the hint waits for the database"
    tracker.finish_sweep("complete")
    assert set(runs_of(tmp_path)) == {SWEEP_RUN, "t0"}


def test_a_kill_while_tables_are_made_leaves_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    made = list[Path]()

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        made[-1].write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "__init__", lambda self, tracking_uri, **_: made.append(file_of(tracking_uri)))
    monkeypatch.setattr(MlflowClient, "search_experiments", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            create_database(tmp_path / "m.db")
    assert list(tmp_path.iterdir()) == []
    assert len(set(made)) == 2, "MLflow keeps connections by name, and those to a removed file fail for ever"


def file_of(uri: str) -> Path:
    file = sqlite_file(uri)
    assert file is not None
    return file


def test_a_database_that_another_sweep_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def other_was_faster(self: Any, tracking_uri: str, **_: Any) -> None:
        file_of(tracking_uri).write_text("mine")
        (tmp_path / "m.db").write_text("the other's")

    monkeypatch.setattr(MlflowClient, "__init__", other_was_faster)
    monkeypatch.setattr(MlflowClient, "search_experiments", lambda self: None)
    create_database(tmp_path / "m.db")
    assert [path.name for path in tmp_path.iterdir()] == ["m.db"]
    assert (tmp_path / "m.db").read_text() == "the other's"


def test_mlflow_says_nothing_and_writes_nothing_elsewhere(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from sdm_ray.config import TrackingSettings\n"
        "from sdm_ray.tracking import open_tracker\n"
        "tracker = open_tracker(TrackingSettings(), Path('sweep'))\n"
        "tracker.start_sweep('s', {}, {})\n"
        "tracker.start_trial('t0', {}, {})\n"
        "tracker.log('t0', {'a': 1.0}, 1)\n"
        "tracker.finish_sweep('complete')\n"
    )
    (tmp_path / "sweep").mkdir()
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "sweep"}
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"tracking"}


def test_a_failing_database_is_one_line_of_ours(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own log would add a page of traceback, which its exception holds already."""
    monkeypatch.setattr(tracker_module, "AWAY_TIMEOUT_SECONDS", 0.1)
    lines = list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(handler.format(record)))
    loggers = [logging.getLogger(name) for name in ("mlflow", "mlflow.store.db.utils", "sdm_ray")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        tracker = started(sweep_dir)
        assert tracker._journal.wait_delivered(30)
        with contextlib.closing(sqlite3.connect(sweep_dir / "mlflow.db")) as database:
            database.execute("DROP TABLE params")
        tracker.start_trial("t0", {"a": 1}, {})
        tracker.finish_sweep("complete")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    away, waiting = lines
    assert away.endswith("journal.jsonl: (sqlite3.OperationalError) no such table: params")
    assert waiting.startswith("2 tracking records wait in")


@pytest.mark.parametrize("kind", ["InterfaceError", "DatabaseError", "DataError"])
def test_a_lost_connection_of_the_server_to_its_database_is_no_refusal(kind: str) -> None:
    """MLflow calls both a bad request."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    error = MlflowException(f"(psycopg2.{kind}) connection already closed", error_code=BAD_REQUEST)
    wanted = RejectedError if kind == "DataError" else MlflowException
    with pytest.raises(wanted), _rejections():
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_under_the_journal_is_said_once(
    sweep_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    tracker = started(sweep_dir)
    append = Journal.append
    for full in (True, False, True):
        monkeypatch.setattr(Journal, "append", _is_full(number) if full else append)
        for name in ("t0", "t1"):
            tracker.start_trial(name, {}, {})
    monkeypatch.setattr(Journal, "append", append)
    tracker.finish_sweep("complete")
    said = [record.getMessage() for record in caplog.records if "cannot keep records" in record.getMessage()]
    assert len(said) == 2
    assert said[0].endswith(f"journal.jsonl: {os.strerror(number)}; --resume records again how trials ended")


def _is_full(number: int) -> Any:
    def append(self: Journal, record: Any) -> None:
        raise OSError(number, os.strerror(number))

    return append


def test_a_deleted_experiment_is_refused_at_the_start(sweep_dir: Path) -> None:
    client = client_of(sweep_dir)
    client.delete_experiment(client.create_experiment("sdm-ray"))
    with pytest.raises(UsageError, match="'sdm-ray' was deleted; restore it"):
        started(sweep_dir)


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_never_answers_is_one_sentence_within_seconds(
    tmp_path: Path, silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdm_ray.tracking.answer.ANSWER_TIMEOUT_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(RunError, match=r"127\.0\.0\.1:\d+ does not answer .*tracking\.enabled=false"):
        started(tmp_path, f"http://127.0.0.1:{silent_server}")
    assert time.monotonic() - start < 5


def test_a_fault_of_the_tracker_costs_the_sweep_nothing(sweep_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {}, {})
    wrong: Any = None
    tracker.log("t0", wrong, 1)
    assert "a fault of sdm-ray" in caplog.text
    tracker.log("t0", {"train/loss": 0.5}, 2)
    tracker.finish_sweep("complete")
    assert runs_of(sweep_dir)["t0"].data.metrics == {"train/loss": 0.5}


def test_the_start_waits_for_no_server_unless_it_is_told_to(tmp_path: Path, silent_server: int) -> None:
    tracker = open_tracker(TrackingSettings(uri=f"http://127.0.0.1:{silent_server}"), tmp_path)
    started_at = time.monotonic()
    tracker.start_sweep("sweep", {}, {}, wait=False)
    assert time.monotonic() - started_at < 5
    assert tracker.error is None


def test_an_unwritable_journal_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tracking").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="tracking cannot write to"):
        started(tmp_path)


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_gets_everything_once(
    tmp_path: Path, empty_database: Path, free_port: int
) -> None:
    database = tmp_path / "server.db"
    shutil.copy(empty_database, database)
    uri = f"http://127.0.0.1:{free_port}"
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "frontier.json").write_text("{}")
    server = mlflow_server(database, free_port)
    try:
        tracker = started(sweep, uri)
        tracker.start_trial("t0", {"a": 1}, {})
        tracker.log("t0", {"train/loss": 0.0}, 0)
        assert tracker._journal.wait_delivered(60)
    finally:
        stop(server)
    start = time.monotonic()
    for step in range(1, 50):
        tracker.log("t0", {"train/loss": float(step)}, step)
    assert time.monotonic() - start < 1, "a sweep does not wait for a server that is away"
    time.sleep(1)
    server = mlflow_server(database, free_port)
    try:
        tracker.log_sweep_artifacts([sweep / "frontier.json"])
        tracker.finish_trial(result_of("t0", sweep))
        tracker.finish_sweep("complete")
        assert tracker.ui_hint().startswith(f"{uri}/#/compare-runs?runs=")
        client = new_client(uri)
        found = client.search_runs([client.get_experiment_by_name("sdm-ray").experiment_id])
        runs = {run.data.tags[TRIAL_TAG]: run for run in found}
        assert len(found) == 2
        history = client.get_metric_history(runs["t0"].info.run_id, "train/loss")
        assert [metric.step for metric in history] == list(range(50))
        assert [file.path for file in client.list_artifacts(runs[SWEEP_RUN].info.run_id)] == ["frontier.json"]
        assert runs["t0"].info.status == "FINISHED"
    finally:
        stop(server)


def mlflow_server(database: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a server on loopback and wait until it answers."""
    store, artifacts = sqlite_uri(database), str(database.parent / "artifacts")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = (database.parent / "server.log").open("ab")
    server = subprocess.Popen(
        command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=database.parent
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            time.sleep(0.3)
    stop(server)
    raise AssertionError((database.parent / "server.log").read_text()[-2000:])


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_that_is_named(sweep_dir: Path, tmp_path: Path, free_port: int) -> None:
    """The compare page of a sweep, in headless Chromium: both trials, what was searched, what was measured."""
    tracker = started(sweep_dir)
    for name, rate in (("t0", 0.001), ("t1", 0.002)):
        tracker.start_trial(name, {"train.learning_rate": rate}, {})
        tracker.finish_trial(result_of(name, sweep_dir, **{"harmful/worst_accuracy": 0.6 + rate}))
    tracker.finish_sweep("complete")
    page = tracker.ui_hint().splitlines()[-1].partition("/#/")[2]
    server = mlflow_server(sweep_dir / "mlflow.db", free_port)
    try:
        browser = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=30000",
            "--dump-dom",
        ]
        browser += [f"--user-data-dir={tmp_path}/profile", f"http://127.0.0.1:{free_port}/#/{page}"]
        shown = subprocess.run(browser, capture_output=True, text=True, timeout=180).stdout
    finally:
        stop(server)
    for words in ("Comparing 2 Runs", "t0", "t1", "train.learning_rate", "harmful/worst_accuracy"):
        assert words in shown, shown[-3000:]


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage", "emptied", "cut"])
def test_a_lost_or_damaged_database_gets_every_trial_again(
    sweep_dir: Path,
    empty_database: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "create_database", lambda file: shutil.copy(empty_database, file))
    tracker = started(sweep_dir)
    for name in ("t0", "t1"):
        tracker.start_trial(name, {"a": 1}, {})
        tracker.finish_trial(result_of(name, sweep_dir))
    tracker.finish_sweep("stopped")
    sweep_dir = sweep_dir.rename(sweep_dir.with_name("moved"))  # a process keeps connections by address
    file = sweep_dir / "mlflow.db"
    before = file.read_bytes()
    shutil.rmtree(sweep_dir / "mlartifacts", ignore_errors=True)
    if damage == "gone":
        file.unlink()
    elif damage == "emptied":
        shutil.copy(empty_database, file)
    else:
        file.write_bytes({"empty": b"", "garbage": b"\xff" * 9000, "cut": before[:9000]}[damage])
    again = started(sweep_dir)
    again.start_trial("t2", {"a": 2}, {})
    again.finish_trial(result_of("t2", sweep_dir))
    again.finish_sweep("complete")
    runs = runs_of(sweep_dir)
    assert runs.keys() == {SWEEP_RUN, "t0", "t1", "t2"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all(runs[name].data.metrics["desired/accuracy"] == 0.9 for name in ("t0", "t1", "t2"))
    assert caplog.text.count("everything is recorded there again") == 1
    assert (sweep_dir / "mlflow.db.damaged-1").exists() == (damage in ("empty", "garbage", "cut"))


def test_a_run_that_a_person_deleted_stays_deleted(sweep_dir: Path) -> None:
    tracker = started(sweep_dir)
    for name in ("t0", "t1"):
        tracker.start_trial(name, {}, {})
        tracker.finish_trial(result_of(name, sweep_dir))
    tracker.finish_sweep("stopped")
    client_of(sweep_dir).delete_run(runs_of(sweep_dir)["t0"].info.run_id)
    started(sweep_dir).finish_sweep("complete")
    assert runs_of(sweep_dir).keys() == {SWEEP_RUN, "t1"}


def test_what_is_on_record_is_known_by_its_beginning_and_its_end(sweep_dir: Path) -> None:
    tracker = started(sweep_dir)
    for name in ("t0", "t1"):
        tracker.start_trial(name, {}, {})
    tracker.finish_trial(result_of("t0", sweep_dir))
    tracker.finish_sweep("stopped")
    again = started(sweep_dir)
    assert [again.is_recorded(name) for name in ("t0", "t1", "t2")] == [True, False, False]
    again.finish_sweep("complete")


@pytest.mark.parametrize("text", ["", "\x00\x00", "it's"])
def test_a_damaged_id_of_a_sweep_is_drawn_again(sweep_dir: Path, text: str) -> None:
    tracker = started(sweep_dir)
    tracker.start_trial("t0", {}, {})
    tracker.finish_trial(result_of("t0", sweep_dir))
    tracker.finish_sweep("stopped")
    (sweep_dir / "tracking" / "sweep_id").write_text(text)
    started(sweep_dir).finish_sweep("complete")
    new = (sweep_dir / "tracking" / "sweep_id").read_text()
    assert new.isalnum()
    found = client_of(sweep_dir).search_runs(["1"], f"tags.`{SWEEP_TAG}` = '{new}'")
    assert {run.data.tags[TRIAL_TAG] for run in found} == {SWEEP_RUN, "t0"}


def test_a_database_of_an_earlier_mlflow_is_brought_up_to_date(
    sweep_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, refusal = list[list[str]](), [RunError("Detected out-of-date database schema (found version a)")]

    def run(command: list[str], **options: Any) -> Any:
        ran.append(command[1:5])
        return subprocess.CompletedProcess(command, 0, "", "")

    def connect(attempt: Any, uri: str) -> None:
        if refusal:
            raise refusal.pop()
        attempt()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tracker_module, "within", connect)
    started(sweep_dir).finish_sweep("complete")
    assert ran.count(["-m", "mlflow", "db", "upgrade"]) == 1
    assert (sweep_dir / "mlflow.db.before-upgrade-1").is_file()
    assert runs_of(sweep_dir).keys() == {SWEEP_RUN}
