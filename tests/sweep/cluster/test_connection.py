"""Sweeps on clusters that others have started: two nodes of which one is killed, and Ray's job server."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdm_ray.core.result import Status
from sdm_ray.frontier.tables import read_tables
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.cluster.connection import ray_environment
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.sweep.view.status import read_status
from tests import ROOT
from tests.fakes import sweep as sweep_fakes
from tests.test_infra import free_port

BIN = Path(sys.executable).parent


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_lost_node_loses_nothing(tmp_path: Path) -> None:
    """Trials spread over two nodes, one is killed, the other ends them, and the frontier is as if undisturbed."""
    changes = {"search__num_trials": 5, "references": "[tuned, random]", "trial__train__num_outer_steps": 60}
    quiet = run_sweep(
        sweep_fakes.settings(tmp_path / "quiet", **changes, resources__max_concurrent_trials=2),
        trial_function="tests.fakes.sweep:smooth",
        view=SilentView(),
    )
    folder = tmp_path / "disturbed" / "fake"
    with ray_environment(local=True):
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            second = nodes.add_node(num_cpus=1)
            arguments = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
            arguments.append(f"resources.ray_address={nodes.address}")
            driver = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.sweep_driver", str(tmp_path / "disturbed"), "located", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            wait_for(
                lambda: on_node(folder, second.node_id) > 0 and sweep_fakes.num_steps(folder) > 30,
                120,
                "the second node idles",
            )
            second.kill_raylet()
            output, _ = driver.communicate(timeout=200)
        finally:
            nodes.shutdown()
    assert driver.returncode == 0, output
    outcome = json.loads(output.splitlines()[-1])
    assert outcome == {"interrupted": False, "ended": [result.trial_id for result in quiet.results], "failed": 0}
    for trial_id in outcome["ended"]:
        assert len(sweep_fakes.events(folder / "trials" / trial_id, "finished")) == 1
    moved = [name for name in outcome["ended"] if len(sweep_fakes.events(folder / "trials" / name, "started")) > 1]
    assert moved, "what ran on the second node went on elsewhere"
    for name in moved:
        first, last = (len(sweep_fakes.events(folder / "trials" / name, f"step{step}")) for step in (1, 60))
        assert (first, last) == (1, 1), "from its checkpoint"
    assert read_tables(folder) == read_tables(quiet.folder)


def on_node(folder: Path, node_id: str) -> int:
    return sum(bool(sweep_fakes.events(trial, f"node-{node_id}")) for trial in (folder / "trials").glob("*"))


@contextmanager
def job_server(environment: dict[str, str]) -> Iterator[str]:
    """A head with its job server, on loopback alone; gives its address."""
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="sdm-", dir="/tmp") as folder:
        command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += ["--num-cpus=2", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder}", "--disable-usage-stats"]
        with Path(folder, "head.log").open("w") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                yield f"http://127.0.0.1:{dashboard}"
            finally:
                head.terminate()
                head.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_submitted_sweep_stops_cleanly_and_is_submitted_again(
    tmp_path: Path, data_file: Path, encoder_folder: Path
) -> None:
    """The real command line and real trials: submit, stop half-way, submit with --resume."""
    runs = tmp_path / "runs"
    document = {
        "name": "job",
        "output_dir": str(runs),
        "trial": {
            "data": {"source": str(data_file), "max_length": 24},
            "encoder": {"name": str(encoder_folder)},
            "train": {"num_outer_steps": 400, "adversary": {"num_steps": 1}, "checkpoint_every_steps": 20},
            "attack": {
                "num_examples": [8], "num_search_trials": 2, "num_rerun_seeds": 2, "num_steps_min": 4,
                "num_steps_max": 8, "batch_sizes": [4],
            },
            "scratch": {"enabled": False},
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        },
        "space": {"train.learning_rate": {"type": "float", "low": 0.001, "high": 0.01}},
        "references": ["tuned"],
        "search": {"num_trials": 4, "sampler": "random", "require_audit": False},  # an empty frontier is exit code 1
    }  # fmt: skip
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(document))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    stopping = {"env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}}

    def job(*arguments: str, check: bool = True) -> str:
        command = [BIN / "ray", "job", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with job_server(environment) as address:
        sweep = [str(BIN / "sdm-ray"), "sweep", str(path)]
        submit = ["submit", "--address", address, "--runtime-env-json", json.dumps(stopping)]
        deadline = time.monotonic() + 90
        while True:  # the job server takes a while to listen
            command = [BIN / "ray", "job", *submit, "--no-wait", "--submission-id", "first", "--", *sweep]
            if subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode == 0:
                break
            assert time.monotonic() < deadline, "no job server"
            time.sleep(2)
        ledger = runs / "job" / "trials.jsonl"
        wait_for(lambda: ledger.exists() and "t0001" in ledger.read_text(), 240, "no trial began")
        job("stop", "--address", address, "first")
        logs = job("logs", "--address", address, "first")
        assert "interrupted; what has finished is kept. Go on with: sdm-ray sweep" in logs
        status = read_status(runs / "job")
        assert status.holder is None
        assert status.num_missing > 0
        assert run_states(runs / "mlflow.db")["RUNNING"] == 0, "every run is closed"
        finished = ended(runs / "job")
        logs = job(*submit, "--submission-id", "second", "--", *sweep, "--resume")
        assert "Pareto frontier" in logs
    results = read_record(runs / "job").entries
    assert {name: entry.result and entry.result.status for name, entry in results.items()} == dict.fromkeys(
        ["tuned", "t0000", "t0001", "t0002", "t0003"], Status.COMPLETE
    )
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    ends = [line["trial_id"] for line in lines if line["event"] == "result"]
    assert len(ends) == len(set(ends)) == 5, "none was run to its end twice"
    assert finished <= set(ends)
    assert run_states(runs / "mlflow.db") == {"FINISHED": 6, "RUNNING": 0}


TERM = """
from sdm_ray.meta.objectives import blocking_term


@blocking_term("mine", reads="harmful_adapted", maximised=False)
def mine(trajectory):
    return trajectory.logits.square().mean()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_brings_its_own_code_and_is_tracked_where_its_environment_says(
    tmp_path: Path, data_file: Path, encoder_folder: Path
) -> None:
    """As typed: no address, relative paths, a module that only the working directory holds; results stay."""
    work, runs, database = tmp_path / "work", tmp_path / "runs", tmp_path / "tracked.db"
    shutil.copytree(encoder_folder, work / "encoder")
    shutil.copy(data_file, work / "rows.parquet")
    (work / "my_term.py").write_text(TERM)
    train = {"num_outer_steps": 4, "adversary": {"num_steps": 1}}
    document = {
        "name": "job",
        "trial": {
            "data": {"source": "rows.parquet", "max_length": 24},
            "encoder": {"name": "encoder"},
            "train": train | {"term_modules": ["my_term"], "blocking": {"custom": {"mine": 0.1}}},
            "attack": {
                "families": ["fine_tune"], "num_examples": [8], "num_search_trials": 2, "num_rerun_seeds": 2,
                "num_steps_min": 2, "num_steps_max": 4, "batch_sizes": [4],
            },
            "scratch": {"enabled": False},
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        },
        "space": {"train.learning_rate": {"type": "float", "low": 0.001, "high": 0.01}},
        "references": [],
        "search": {"num_trials": 2, "sampler": "random"},
    }  # fmt: skip
    (work / "sweep.yaml").write_text(yaml.safe_dump(document))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}", "MLFLOW_EXPERIMENT_NAME": "team"}
    with job_server(environment) as address:
        submit = [BIN / "ray", "job", "submit", "--working-dir", "."]
        submit += ["--runtime-env-json", json.dumps({"env_vars": variables}), "--", BIN / "sdm-ray"]

        def job(*arguments: str) -> str:
            """The whole output of a job; its exit code says little, for four steps block nothing."""
            command, there = [*submit, *arguments], environment | {"RAY_ADDRESS": address}
            done = subprocess.run(command, cwd=work, env=there, capture_output=True, text=True, timeout=300)
            return done.stdout + done.stderr

        deadline = time.monotonic() + 90
        while "which Ray deletes after the job" not in (said := job("sweep", "sweep.yaml")):
            assert time.monotonic() < deadline, said
            time.sleep(2)
        said = job("sweep", "sweep.yaml", "--set", f"output_dir={runs}")
    assert "(this is one of its jobs)" in said
    assert f"tracking in MLflow at sqlite:///{database} (MLFLOW_TRACKING_URI), experiment team" in said
    entries = read_record(runs / "job").entries
    assert {name: entry.result and entry.result.status for name, entry in entries.items()} == dict.fromkeys(
        ["t0000", "t0001"], Status.COMPLETE
    ), said
    assert run_states(database) == {"FINISHED": 3, "RUNNING": 0}
    assert not (runs / "mlflow.db").exists()


def ended(folder: Path) -> set[str]:
    return {name for name, entry in read_record(folder).entries.items() if entry.result is not None}


def run_states(database: Path) -> dict[str, int]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    runs: list[Any] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    found = [run.info.status for run in runs]
    return {state: found.count(state) for state in {*found, "RUNNING"}}
