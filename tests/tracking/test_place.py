"""Where runs go and why, and that sweeps which share a database find it again and do not disturb each other."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdm_ray.cli.tracking import FROM_ORIGIN, training_place
from sdm_ray.config import Origin, TrackingSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.tracking import open_tracker
from sdm_ray.tracking.address import sqlite_uri
from sdm_ray.tracking.client import new_client
from sdm_ray.tracking.place import CONTEXT, EXPERIMENT, URI, choose_place, keep_place, place_of
from sdm_ray.tracking.runs import connect, find_run, run_of_trial
from tests import ROOT
from tests.fakes import sweep as sweep_fakes

SERVER, OTHER = "http://mlflow:5000", "http://other:5000"


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once."""
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    new_client(sqlite_uri(path)).search_experiments()
    return path


def begun(folder: Path, uri: str, experiment: str = "first") -> Path:
    (folder / "tracking").mkdir(parents=True)
    keep_place(folder, uri, experiment)
    return folder


@pytest.mark.parametrize(
    ("settings", "environ", "uri", "experiment"),
    [
        ({}, {}, (None, "the default"), ("sdm-ray", "the default")),
        ({}, {URI: "", EXPERIMENT: ""}, (None, "the default"), ("sdm-ray", "the default")),
        ({}, {URI: SERVER, EXPERIMENT: "team"}, (SERVER, URI), ("team", EXPERIMENT)),
        (
            {"uri": OTHER, "experiment": "mine"}, {URI: SERVER, EXPERIMENT: "team"},
            (OTHER, "tracking.uri"), ("mine", "tracking.experiment"),
        ),
        ({"uri": OTHER}, {URI: SERVER, EXPERIMENT: "team"}, (OTHER, "tracking.uri"), ("team", EXPERIMENT)),
    ],
)  # fmt: skip
def test_a_setting_comes_before_the_environment_and_that_before_the_default(
    tmp_path: Path, settings: dict[str, str], environ: dict[str, str], uri: tuple[str, str], experiment: tuple[str, str]
) -> None:
    place = choose_place(TrackingSettings(**settings), tmp_path / "runs" / "a", environ=environ)
    assert (place.uri, place.uri_from) == (uri[0] or sqlite_uri(tmp_path / "runs" / "mlflow.db"), uri[1])
    assert (place.experiment, place.experiment_from) == experiment
    assert f"({uri[1]}), experiment {experiment[0]} ({experiment[1]})" in str(place)


def test_a_sweep_with_copies_keeps_its_runs_in_the_folder_that_is_copied(tmp_path: Path) -> None:
    place = choose_place(TrackingSettings(), tmp_path / "a", own=True, environ={})
    assert place.uri == sqlite_uri(tmp_path / "a" / "mlflow.db")


def test_a_sweep_goes_on_where_it_began_unless_a_setting_moves_it(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a", SERVER)
    environ = {URI: OTHER, EXPERIMENT: "team"}
    place = choose_place(TrackingSettings(), folder, environ=environ)
    assert (place.uri, place.uri_from, place.experiment) == (SERVER, "where it began", "first")
    assert choose_place(TrackingSettings(uri=OTHER), folder, environ={}).uri == OTHER
    assert place_of(folder) == SERVER


def test_a_password_is_not_written_down_and_still_used(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a", "http://me:secret@mlflow:5000")
    assert "secret" not in (folder / "tracking" / "place.json").read_text()
    environ = {URI: "http://me:secret@mlflow:5000"}
    place = choose_place(TrackingSettings(), folder, environ=environ)
    assert place.uri == environ[URI]
    assert "secret" not in str(place)
    assert choose_place(TrackingSettings(), folder, environ={}).uri == "http://me@mlflow:5000"


@pytest.mark.parametrize("kept", ["mlflow.db", "tracking/sweep_id"])
def test_a_sweep_of_before_is_gone_on_from_in_its_own_database(tmp_path: Path, kept: str) -> None:
    """The second one was killed before anything was delivered."""
    file = tmp_path / "old" / kept
    file.parent.mkdir(parents=True)
    file.touch()
    place = choose_place(TrackingSettings(), tmp_path / "old", environ={URI: SERVER, EXPERIMENT: "team"})
    assert (place.uri, place.experiment) == (sqlite_uri(tmp_path / "old" / "mlflow.db"), "sdm-ray")


def test_a_database_beside_the_sweeps_is_found_after_the_folder_has_moved(tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "a", sqlite_uri(tmp_path / "runs" / "mlflow.db"))
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert place_of(tmp_path / "moved" / "a") == sqlite_uri(tmp_path / "moved" / "mlflow.db")


def test_a_damaged_record_of_the_place_is_said(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a", SERVER)
    (folder / "tracking" / "place.json").write_text("[]")
    with pytest.raises(UsageError, match=r"place\.json is damaged .* set tracking\.uri"):
        place_of(folder)


def test_tags_of_the_environment_and_of_settings_reach_every_run(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv(CONTEXT, json.dumps({"team": "blue", "cost_centre": 7}))
    monkeypatch.setenv(EXPERIMENT, "team")
    tracker = open_tracker(TrackingSettings(tags={"team": "red"}), tmp_path / "a")
    tracker.start_sweep("a", {}, {})
    tracker.start_trial("t0", {}, {})
    tracker.finish_sweep("complete")
    client = new_client(sqlite_uri(tmp_path / "mlflow.db"))
    experiment = client.get_experiment_by_name("team")
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.data.tags["team"], run.data.tags["cost_centre"]) for run in runs] == [("red", "7")] * 2


@pytest.mark.parametrize("text", ["team=blue", "[1]"])
def test_tags_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"MLFLOW_RUN_CONTEXT is .* no JSON object of tags"):
        choose_place(TrackingSettings(), tmp_path, environ={CONTEXT: text})


ORIGIN = Origin(sweep="s", trial_id="t0", rule="knee", sweep_id="1", tracking_uri=OTHER, experiment="theirs")


@pytest.mark.parametrize(
    ("origin", "option", "environ", "expected"),
    [
        (None, None, {}, None),
        (None, None, {URI: SERVER}, (SERVER, URI, "sdm-ray")),
        (ORIGIN, None, {}, (OTHER, FROM_ORIGIN, "theirs")),
        (ORIGIN, None, {URI: SERVER, EXPERIMENT: "team"}, (SERVER, URI, "team")),
        (ORIGIN, SERVER, {URI: "http://third"}, (SERVER, "--tracking-uri", "theirs")),
        (ORIGIN, "none", {URI: SERVER}, None),
    ],
)
def test_a_training_is_tracked_where_it_is_asked_for_else_beside_its_trial(
    origin: Origin | None, option: str | None, environ: dict[str, str], expected: tuple[str, str, str] | None
) -> None:
    place = training_place(origin, option, environ)
    assert (place and (place.uri, place.uri_from, place.experiment)) == expected


@pytest.fixture
def closed_server() -> Iterator[tuple[str, list[str]]]:
    """Answers 401 to everything and keeps what was sent as authorisation."""
    sent: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            sent.append(self.headers.get("Authorization", ""))
            self.send_response(401)
            self.end_headers()

        do_GET = do_POST = _refuse

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()


def test_a_token_is_sent_and_a_server_that_refuses_says_what_to_set(
    closed_server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, sent = closed_server
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    with pytest.raises(RunError, match=r"refuses .*401.*; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME"):
        connect(uri)
    assert set(sent) == {"Bearer abc"}


@pytest.mark.usefixtures("in_process")
def test_sweeps_of_a_folder_share_a_database_and_say_so(tmp_path: Path, empty_database: Path) -> None:
    """Their runs are found by id and by sweep, and so is one in a database of before, in a sweep's folder."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    views = [SilentView(), SilentView()]
    for name, view in zip(("a", "b"), views, strict=True):
        changes = {"name": name, "references": "[]", "search__num_trials": 1, "tracking__enabled": True}
        run_sweep(sweep_fakes.settings(tmp_path, **changes), trial_function="tests.fakes.sweep:smooth", view=view)
    file = tmp_path / "mlflow.db"
    said = f"tracking in MLflow at {sqlite_uri(file)} (the default), experiment sdm-ray (the default)"
    assert [view.messages[0] for view in views] == [said, said]
    runs = [run_of_trial(tmp_path / name, "t0000") for name in ("a", "b")]
    assert runs[0].run_id != runs[1].run_id
    assert [find_run(run.run_id, output_dir=tmp_path).sweep_id for run in runs] == [run.sweep_id for run in runs]
    assert not list(tmp_path.glob("*/mlflow.db"))
    before = tmp_path / "old"
    before.mkdir()
    shutil.copy(file, before / "mlflow.db")
    file.unlink()
    assert find_run(runs[0].run_id, output_dir=tmp_path).uri == sqlite_uri(before / "mlflow.db")


WRITER = """
import sys
from pathlib import Path
from sdm_ray.config import TrackingSettings
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.tracking import open_tracker
folder = Path(sys.argv[1])
tracker = open_tracker(TrackingSettings(), folder)
tracker.start_sweep(folder.name, {"name": folder.name}, {}, wait=False)
for number in range(12):
    trial = f"t{number:04d}"
    tracker.start_trial(trial, {"seed": number}, {})
    for step in range(5):
        tracker.log(trial, {"loss": 1.0 / (step + 1), "other": float(step)}, step)
    tracker.finish_trial(TrialResult(trial_id=trial, config_hash="", method="mlac", seed=0, status=Status.COMPLETE,
                                     metrics={"desired/accuracy": 0.5}, output_dir=folder))
tracker.finish_sweep("complete")
print(tracker.error, tracker._delivery._journal.count_pending())
"""


@pytest.mark.slow
def test_two_sweeps_write_into_one_database_at_once(tmp_path: Path) -> None:
    """From the making of its tables on; every run is there once, with all that it has."""
    names = ("a", "b")
    command = [sys.executable, "-c", WRITER]
    drivers = [
        subprocess.Popen([*command, str(tmp_path / name)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name in names
    ]
    said = [driver.communicate(timeout=200)[0].decode() for driver in drivers]
    assert said == ["None 0\n"] * 2
    client = new_client(sqlite_uri(tmp_path / "mlflow.db"))
    experiment = client.get_experiment_by_name("sdm-ray")
    for name in names:
        sweep_id = (tmp_path / name / "tracking" / "sweep_id").read_text()
        runs = client.search_runs([experiment.experiment_id], f"tags.`sdm_ray.sweep_id` = '{sweep_id}'")
        assert len(runs) == 13
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            if run.info.run_name != name:
                assert run.data.metrics["desired/accuracy"] == 0.5
                assert len(client.get_metric_history(run.info.run_id, "loss")) == 5


def test_settings_that_name_no_place_are_identified_as_before() -> None:
    identity = TrackingSettings().identity()
    assert identity == TrackingSettings(experiment="sdm-ray").identity()
    assert "tags" not in identity
    assert TrackingSettings(tags={"team": "red"}).identity() != identity != TrackingSettings(experiment="x").identity()
