"""The diagnosis tells what is wrong and never raises."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

import sdm_ray.cli.diagnosis as doctor
from sdm_ray.cli.diagnosis import Check, diagnose


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback is asked."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def server() -> Iterator[Any]:
    """A web server on loopback; `answers` maps paths to status and body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answers: dict[str, tuple[int, str]] = {}

        def do_GET(self) -> None:
            status, body = self.answers.get(self.path, (404, "no"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        running.answers = Handler.answers  # type: ignore[attr-defined]
        running.url = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
        yield running
        running.shutdown()


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_a_working_machine_passes(tmp_path: Path) -> None:
    checks = by_name(diagnose(tmp_path / "cache", output_dir=tmp_path / "runs"))
    assert {name for name, check in checks.items() if check.status == "fail"} == set()
    for name in ("python", "packages", "cpu", "cuda", "ray", "mlflow", "hub", "built-in encoder", "cache folder"):
        assert name in checks
    assert "torch 2." in checks["packages"].detail
    assert list(tmp_path.iterdir()) == [], "a diagnosis leaves nothing behind"


def test_a_broken_check_is_a_line_and_not_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Check:
        raise SystemExit("libcudart\nis gone")

    monkeypatch.setattr(doctor, "_cuda", broken)
    check = by_name(diagnose(tmp_path))["cuda"]
    assert check == Check("cuda", "fail", "cannot be checked (SystemExit: libcudart is gone)")


def test_missing_and_old_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["a>=2", "b>=1", 'c; extra == "test"'])

    def version(name: str) -> str:
        if name == "b":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    assert doctor._packages() == Check("packages", "fail", "missing: b; install sdm-ray again")
    monkeypatch.setattr(doctor, "requires", lambda _: ["a>=2"])
    check = doctor._packages()
    assert check.status == "warn"
    assert "a 1.0 (needs >=2)" in check.detail


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
    assert doctor._python().status == "fail"


def test_a_folder_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = by_name(diagnose(tmp_path / "file" / "cache"))["cache folder"]
    assert check.status == "fail"
    assert "SDM_RAY_CACHE" in check.detail


@pytest.mark.parametrize(("free", "status"), [(2**20, "fail"), (2**30, "warn"), (2**34, "ok")])
def test_little_disk_space_is_said(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert doctor._folder("cache folder", tmp_path, "move").status == status


def test_little_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.isdir("/dev/shm"):  # noqa: PTH112
        pytest.skip("no /dev/shm here")
    usage = shutil.disk_usage("/dev/shm")._replace(total=64 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (_, check) = doctor._ray(deep=False)
    assert (check.name, check.status) == ("shared memory", "warn")
    assert "64 MiB" in check.detail


def test_a_driver_without_a_torch_that_uses_it_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert doctor._cuda().status == "ok"
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert doctor._cuda().status == "warn"


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [((200, "3.17.2"), "ok", "MLflow 3.17.2"), ((401, ""), "warn", "credentials"), ((404, ""), "fail", "status 404")],
)
def test_an_mlflow_server_is_asked(server: Any, answer: tuple[int, str], status: str, words: str) -> None:
    server.answers["/version"] = answer
    check = doctor._tracking_server(server.url)
    assert check.status == status
    assert words in check.detail


def test_an_mlflow_server_that_is_away_is_said(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    checks = by_name(diagnose(tmp_path, tracking_uri=f"http://127.0.0.1:{port}"))
    assert checks["mlflow server"].status == "fail"
    assert "does not answer" in checks["mlflow server"].detail


def test_the_hub_is_asked_and_its_absence_is_a_warning(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NETWORK_TIMEOUT_SECONDS", 1.0)
    assert doctor._hub().status == "warn"
    server.answers[""] = server.answers["/"] = (200, "hello")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    assert doctor._hub().status == "ok"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in doctor._hub().detail


def test_a_page_that_hangs_does_not_hold_the_diagnosis_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NETWORK_TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        code, words = doctor._get(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert code == 0
        assert words
        assert time.monotonic() - start < 3


def test_a_built_in_encoder_with_a_missing_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdm_ray.models.pretrain.SHIPPED_FOLDERS", {1: tmp_path, 2: tmp_path})
    check = doctor._builtin_encoder()
    assert check.status == "fail"
    assert "model.safetensors" in check.detail


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("print('noise'); print('works')", Check("x", "ok", "works")),
        ("raise RuntimeError('no shared memory')", Check("x", "fail", "RuntimeError: no shared memory")),
        ("import sys; sys.exit(3)", Check("x", "fail", "exit code 3")),
    ],
)
def test_deep_checks_report_the_last_line(script: str, wanted: Check) -> None:
    assert doctor._in_process("x", script) == wanted


@pytest.mark.parametrize(("given", "tried"), [(None, "http://mlflow:5000"), ("http://other:5000", "http://other:5000")])
def test_the_server_of_the_environment_is_tried_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch, given: str | None, tried: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    asked: list[object] = []
    monkeypatch.setattr(doctor, "diagnose", lambda *_, **options: asked.append(options["tracking_uri"]) or [])
    doctor.run(deep=False, tracking_uri=given)
    assert asked == [tried]


def test_a_user_without_a_home_folder_fails_one_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor raises for nobody."""
    monkeypatch.setenv("SDM_RAY_CACHE", "~nobody-of-this-name/cache")
    check = doctor._cache_folder(None)
    assert check.status == "fail"
    assert "SDM_RAY_CACHE" in check.detail
