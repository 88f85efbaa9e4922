"""Which Ray a sweep takes and says that it takes, and where it refuses to put results. No Ray starts here."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from sdm_ray.cli.app import main
from sdm_ray.config import ResourceSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.cluster.choice import (
    ADDRESS,
    JOB,
    ClusterChoice,
    check_cluster,
    check_gpus,
    choose_cluster,
    working_copy,
)
from sdm_ray.sweep.cluster.connection import (
    ENVIRONMENT,
    FREE_PORTS,
    cluster,
    free_agent_port,
    not_connected,
    ray_environment,
)
from tests.fakes import sweep as sweep_fakes

COPY = Path("session_1/runtime_resources/working_dir_files/_ray_pkg_0123")


@pytest.mark.parametrize(
    ("setting", "environ", "address", "why"),
    [
        (None, {}, None, "no resources.ray_address, no RAY_ADDRESS"),
        (None, {ADDRESS: ""}, None, "no resources.ray_address, no RAY_ADDRESS"),
        (None, {ADDRESS: "10.0.0.1:6379"}, "10.0.0.1:6379", "RAY_ADDRESS"),
        (None, {ADDRESS: "local"}, None, "RAY_ADDRESS is local"),
        (None, {ADDRESS: "10.0.0.1:6379", JOB: "{}"}, "10.0.0.1:6379", "this is one of its jobs"),
        (None, {JOB: "{}"}, "auto", "this is one of its jobs"),
        ("auto", {ADDRESS: "10.0.0.1:6379"}, "auto", "resources.ray_address"),
        ("10.0.0.2:6379", {ADDRESS: "10.0.0.1:6379", JOB: "{}"}, "10.0.0.2:6379", "resources.ray_address"),
        ("local", {ADDRESS: "10.0.0.1:6379", JOB: "{}"}, None, "resources.ray_address is local"),
    ],
)
def test_a_setting_comes_before_the_job_and_the_job_before_the_variable(
    setting: str | None, environ: dict[str, str], address: str | None, why: str
) -> None:
    choice = choose_cluster(ResourceSettings(ray_address=setting), environ)
    assert choice == ClusterChoice(address=address, why=why)
    place = "starting Ray on this machine" if address is None else f"connecting to the Ray cluster at {address}"
    assert str(choice) == f"{place} ({why})"


@pytest.mark.parametrize(
    ("setting", "variable", "message"),
    [
        (None, "http://10.0.0.1:8265", "RAY_ADDRESS is 'http:.*8265', an address of Ray's job server.*submit it"),
        ("ray://10.0.0.1:10001", "", "resources.ray_address is 'ray://10.0.0.1:10001', an address of Ray Client"),
    ],
)  # fmt: skip
def test_an_address_that_takes_jobs_alone_is_refused(setting: str | None, variable: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_cluster(ResourceSettings(ray_address=setting), {ADDRESS: variable})


def test_a_ray_of_the_sweeps_own_sees_neither_the_address_nor_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the job's runtime environment in place every worker would die: the private Ray has not got its packages."""
    monkeypatch.setenv(ADDRESS, "10.0.0.1:6379")
    monkeypatch.setenv(JOB, '{"runtime_env": {"working_dir": "gcs://_ray_pkg_0123.zip"}}')
    for name in FREE_PORTS:
        monkeypatch.delenv(name, raising=False)  # a Ray of other tests may be running in this process
    with ray_environment(local=True):
        assert not {ADDRESS, JOB} & os.environ.keys()
        assert FREE_PORTS.items() <= os.environ.items()
    assert os.environ[ADDRESS] == "10.0.0.1:6379"
    with ray_environment(local=False):
        assert {ADDRESS, JOB} <= os.environ.keys()
        assert not FREE_PORTS.keys() & os.environ.keys()


def test_a_job_servers_address_does_not_stand_in_the_way_of_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` would take the variable before `auto`."""
    monkeypatch.setenv(ADDRESS, "http://10.0.0.1:8265")
    with ray_environment(local=False):
        assert ADDRESS not in os.environ
    assert os.environ[ADDRESS] == "http://10.0.0.1:8265"


def test_a_job_keeps_what_it_ships_and_the_variables_that_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {"working_dir": "gcs://_ray_pkg_0123.zip", "env_vars": {"RAY_USAGE_STATS_ENABLED": "1", "MINE": "2"}}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": shipped, "metadata": {}}))
    monkeypatch.setenv(ADDRESS, "10.0.0.1:6379")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3.0})
    calls: list[dict[str, object]] = []
    monkeypatch.setattr("ray.init", lambda **options: calls.append(options))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    said: list[str] = []
    with cluster(ResourceSettings(), announce=said.append) as fits:
        assert fits == 3
    assert said == ["connecting to the Ray cluster at 10.0.0.1:6379 (this is one of its jobs)"]
    (options,) = calls
    assert options["address"] == "10.0.0.1:6379"
    expected = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_USAGE_STATS_ENABLED"}
    assert options["runtime_env"] == {"env_vars": expected}, "a field or variable given twice makes Ray refuse to merge"


def test_the_dashboard_agent_of_a_ray_of_the_sweeps_own_takes_a_free_port() -> None:
    from ray._private import parameter

    with free_agent_port():
        assert parameter.RayParams().dashboard_agent_listen_port == 0
    assert parameter.RayParams().dashboard_agent_listen_port == 52365


@pytest.mark.parametrize(
    ("address", "error", "parts"),
    [
        (None, Exception("The current node timed out during startup. This"), ("did not start in time", "RAY_ADDRESS")),
        (None, TimeoutError(), ("did not start in time", "once it is quieter", "/tmp/x/session_latest/logs")),
        (None, OSError("no space"), ("did not start: no space", "doctor --deep")),
        ("a:1", ConnectionError("refused"), ("no Ray cluster answers at 'a:1' (why): refused", "ray_address=local")),
    ],
)
def test_a_ray_that_is_not_there_says_what_to_do(address: str | None, error: Exception, parts: tuple[str, ...]) -> None:
    choice = ClusterChoice(address=address, why="why")
    said = not_connected(choice, "/tmp/x" if address is None else None, error)
    assert all(part in said for part in parts), said


def test_a_working_copy_is_told_by_its_path(tmp_path: Path) -> None:
    assert working_copy(tmp_path / COPY / "runs") == tmp_path / COPY
    assert working_copy(tmp_path / COPY) == tmp_path / COPY
    assert working_copy(tmp_path / "runs") is None


@pytest.fixture
def in_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs where a job would."""
    folder = tmp_path / COPY
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_results_are_not_put_where_ray_deletes_them(in_copy: Path, tmp_path: Path) -> None:
    settings = sweep_fakes.settings(Path("runs"))
    with pytest.raises(UsageError, match=r"output_dir is 'runs', in Ray's copy .* deletes .*storage_path"):
        run_sweep(settings, trial_function="tests.fakes.sweep:smooth", view=SilentView())
    assert not (in_copy / "runs").exists()


@pytest.mark.parametrize("change", ["output_dir", "storage_path"])
def test_results_that_stay_are_taken(in_copy: Path, tmp_path: Path, in_process: None, change: str) -> None:
    changes = {"references": "[]", "search__num_trials": 1}
    if change == "output_dir":
        settings = sweep_fakes.settings(tmp_path / "kept", **changes)
    else:
        settings = sweep_fakes.settings(Path("runs"), **changes, storage_path=(tmp_path / "kept").as_uri())
    outcome = run_sweep(settings, trial_function="tests.fakes.sweep:smooth", view=SilentView())
    assert [result.trial_id for result in outcome.results] == ["t0000"]
    assert list((tmp_path / "kept").rglob("trials.jsonl"))


@pytest.mark.parametrize("command", [["train", "trial.yaml"], ["attack", "model"]])
def test_commands_on_one_model_refuse_it_as_well(
    in_copy: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    Path("trial.yaml").write_text("name: one\n")
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "--out" in (error := capsys.readouterr().err)
    assert "which Ray deletes after the job" in error


def test_what_ray_would_refuse_after_a_minute_is_refused_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test of this process may have started one
    check_cluster(ResourceSettings(cpus_per_trial=1), {})
    with pytest.raises(UsageError, match=r"resources\.cpus_per_trial is 99999 but this machine has \d+ CPUs"):
        check_cluster(ResourceSettings(cpus_per_trial=99999), {})
    for address in ("nonsense", "host:", "host:port", "host:70000"):
        with pytest.raises(UsageError, match=rf"address is '{address}' \(RAY_ADDRESS\), and must be HOST:PORT"):
            check_cluster(ResourceSettings(), {ADDRESS: address})


def test_an_address_at_which_nobody_listens_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_cluster(ResourceSettings(ray_address=address), {})
    with pytest.raises(RunError, match=rf"no Ray cluster answers at '{address}' \(resources\.ray_address\): .*refused"):
        check_cluster(ResourceSettings(ray_address=address), {})


def test_more_gpus_than_there_are_are_refused_before_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check_gpus(ResourceSettings(gpus_per_trial=1))
    with pytest.raises(UsageError, match=r"resources\.gpus_per_trial is 2 but this machine has 1 GPUs"):
        check_gpus(ResourceSettings(gpus_per_trial=2))
