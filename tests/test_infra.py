"""`infra/`: files are what their platforms read, commands are ones that are there, no secret or open port is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from sdm_ray.cli.app import app
from sdm_ray.config import SweepSettings, check_path, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.frontier.tables import read_tables
from sdm_ray.sweep import SilentView, run_sweep
from tests import ROOT
from tests.fakes import sweep as sweep_fakes

INFRA = ROOT / "infra"
FILES = sorted(path for path in INFRA.iterdir() if path.is_file() and path.name != "constraints.txt")
RAY = next(
    line.split("==")[1] for line in (INFRA / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
)


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((INFRA / name).read_text()))


def commands() -> list[tuple[str, str]]:
    """(file, command) of every `sdm-ray COMMAND ...`, up to what the shell takes for itself."""
    found = []
    for path in FILES:
        text = re.sub(r"^#+ ?|\\\n", " ", path.read_text(), flags=re.MULTILINE)
        text = re.sub(r"\n\s+(?=--|exec )", " ", text)  # folded YAML
        pattern = r"(?<![\w/.-])(?:\.venv/bin/)?sdm-ray (?:sweep|train|attack|status|frontier|best)\b[^\n`|&;<>]*"
        found += [(path.name, match.group(0)) for match in re.finditer(pattern, text)]
    return found


@pytest.mark.parametrize(("file", "command"), commands())
def test_every_command_is_one_that_the_command_line_takes(file: str, command: str) -> None:
    text = command.replace("'", "").replace('"$file"', "sweeps/quickstart.yaml").replace("$PWD/", "")
    words = [word for word in shlex.split(text) if not word.startswith("$")]
    name, *arguments = words[1:]
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, arguments, resilient_parsing=False)  # type: ignore[attr-defined]
    for setting in (word for flag, word in pairwise(arguments) if flag == "--set"):
        check_path(SweepSettings, setting.split("=")[0])
    for argument in arguments:
        if argument.startswith("sweeps/"):
            assert (ROOT / argument).is_file()


def test_there_are_commands_to_check() -> None:
    assert {file for file, _ in commands()} >= {
        "compose.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml", "ray-cluster.yaml", "slurm.sh", "README.md",
    }  # fmt: skip


def test_the_launcher_file_passes_rays_own_validator() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents("ray-cluster.yaml")
    validate_config(prepare_config(config))
    config["max_wrokers"] = 3
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(config)


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_kubernetes_objects_are_whole(name: str) -> None:
    kinds = {document["kind"]: document for document in documents(name)}
    assert kinds.keys() <= {"PersistentVolumeClaim", "RayCluster", "RayJob"}
    for kind, document in kinds.items():
        assert document["apiVersion"] == ("v1" if kind == "PersistentVolumeClaim" else "ray.io/v1")
        assert document["metadata"]["name"]
    claims = {document["metadata"]["name"] for document in documents("kuberay-cluster.yaml")}
    spec = kinds["RayCluster"]["spec"] if "RayCluster" in kinds else kinds["RayJob"]["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == RAY
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP", "nothing is exposed beyond the cluster"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    specs = list(pods(spec))
    assert len(specs) == 2
    for pod in specs:
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        assert set(volumes.values()) <= claims
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
            assert container["image"] in {f"sdm-ray:{target}" for target in targets()}


def test_the_job_stops_cleanly() -> None:
    (job,) = documents("kuberay-job.yaml")
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert environment["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert all(isinstance(value, str) for value in environment.values()), "Ray takes nothing else"
    script = shlex.split(job["spec"]["entrypoint"])
    assert script[:2] == ["sh", "-c"]
    subprocess.run(["sh", "-n", "-c", script[2]], check=True)


def targets() -> list[str]:
    return re.findall(r"^FROM \S+ AS (\S+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE)


def test_the_image_copies_what_is_there_and_does_not_run_as_root() -> None:
    text = (INFRA / "Dockerfile").read_text()
    assert targets() == ["build", "cpu", "cuda"]
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for options, sources in re.findall(r"^COPY ((?:--\S+ )*)(.*) \S+$", text, re.MULTILINE):
        if "--from=" not in options:
            for source in sources.split():
                assert (ROOT / source).exists()
                assert source in sent, f"the builder does not get {source}"
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "ray"
    extra = re.findall(r'"/src\[(\w+)\]"', text)
    assert extra == ["postgres"]
    assert f"\n{extra[0]} = [" in (ROOT / "pyproject.toml").read_text()


def test_compose_publishes_on_loopback_and_knows_no_password() -> None:
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    for name, service in services.items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert set(service.get("secrets", [])) <= compose["secrets"].keys()
        assert set(service.get("depends_on", {})) <= services.keys()
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= compose["volumes"].keys()
        if isinstance(service.get("command"), list):
            subprocess.run(["sh", "-n", "-c", service["command"][-1].replace("$$", "$")], check=True)
    assert "optuna" in compose["configs"]["optuna_db"]["content"]
    assert "infra/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_no_file_holds_a_secret() -> None:
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), f"{path.name}: a password in a URL"
        assert not re.search(r"(?i)(password|token|secret)\s*[:=]\s*['\"]?[0-9a-z]{8,}['\"]?\s*$", text, re.MULTILINE)


@pytest.mark.parametrize("setting", ["storage=postgresql://me:hunter22@db/x", "tracking.uri=https://me:hunter22@host"])
def test_a_url_with_a_password_is_refused_and_not_repeated(setting: str) -> None:
    with pytest.raises(UsageError, match="holds a password") as refusal:
        parse_settings(SweepSettings, {}, [setting])
    assert "hunter22" not in str(refusal.value)


def test_the_slurm_script_is_one_for_bash() -> None:
    path = INFRA / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)
    assert "#SBATCH --signal=B:TERM@300" in path.read_text()


def postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    which = shutil.which("initdb")
    return found[-1].parent if found else Path(which).parent if which else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def postgres(folder: Path) -> Iterator[int]:
    """A server on loopback with the databases `mlflow` and `optuna`; gives its port."""
    binaries, port = postgres_binaries(), free_port()
    assert binaries is not None
    folder.mkdir()
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # Postgres refuses to run as root
        for parent in (folder, *folder.parents[:3]):
            parent.chmod(0o755)
        shutil.chown(folder, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    options: dict[str, Any] = {"check": True, "capture_output": True, "cwd": "/", **user}
    data = folder / "data"
    subprocess.run([binaries / "initdb", "-D", data, "-U", "sdm", "--auth=trust"], **options)
    command = [binaries / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **user)
    try:
        for _ in range(100):
            if subprocess.run([binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], stdout=-3).returncode == 0:
                break
            time.sleep(0.1)
        for name in ("mlflow", "optuna"):
            create = [binaries / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "sdm", name]
            subprocess.run(create, check=True, capture_output=True, cwd="/")
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for clients to leave
        server.wait(30)


@contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[str]:
    """A server on loopback; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(postgres_binaries() is None, reason="no Postgres on this machine")
def test_a_sweep_on_postgres_and_an_mlflow_server(tmp_path: Path) -> None:
    """What compose.yaml starts, from the system's packages: Optuna and MLflow on Postgres, and a sweep that resumes."""
    pytest.importorskip("psycopg2")
    from mlflow import MlflowClient

    with postgres(tmp_path / "pg") as port:
        url = f"postgresql+psycopg2://sdm@127.0.0.1:{port}"
        with mlflow_server(tmp_path, f"{url}/mlflow") as uri:
            common = {
                "storage": f"{url}/optuna",
                "tracking__enabled": True,
                "tracking__uri": uri,
                "references": "[tuned]",
            }
            for num_trials, resume in ((2, False), (4, True)):
                settings = sweep_fakes.settings(tmp_path, search__num_trials=num_trials, **common)
                outcome = run_sweep(
                    settings, resume=resume, trial_function="tests.fakes.sweep:smooth", view=SilentView()
                )
                assert not outcome.failures
            assert len(read_tables(outcome.folder)) == 5
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name("sdm-ray")
            assert experiment is not None
            runs = client.search_runs([experiment.experiment_id])
            names = sorted(run.info.run_name for run in runs)
            assert len(names) == 6, names
            assert {run.info.status for run in runs} == {"FINISHED"}
            assert not (outcome.folder / "optuna.db").exists()
