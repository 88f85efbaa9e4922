"""What is found out of a Ray that died, and how a sweep ends then; real kills are in `tests/sweep/test_faults.py`."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.sweep.cluster import watch as watch_module
from sdm_ray.sweep.cluster.connection import own_session
from sdm_ray.sweep.cluster.watch import ClusterLostError, ClusterWatch, cluster_probe


class Node:
    """What the watch sees of Ray's node."""

    def __init__(self, daemons: dict[str, Any], address: str = "") -> None:
        self.all_processes = {kind: [type("Info", (), {"process": process})()] for kind, process in daemons.items()}
        self.gcs_address = address


def probe_of(monkeypatch: pytest.MonkeyPatch, node: Node | None) -> Callable[[], str | None]:
    monkeypatch.setattr("ray._private.worker._global_node", node)
    return cluster_probe()


@pytest.mark.parametrize(("kind", "said"), [("raylet", "Ray's raylet has died"), ("gcs_server", "Ray's GCS has died")])
def test_a_dead_daemon_of_a_private_ray_is_found(monkeypatch: pytest.MonkeyPatch, kind: str, said: str) -> None:
    daemons = {name: subprocess.Popen(["sleep", "60"]) for name in ("raylet", "gcs_server")}
    try:
        probe = probe_of(monkeypatch, Node(daemons))
        assert probe() is None
        daemons[kind].kill()
        deadline = time.monotonic() + 10
        while probe() is None:
            assert time.monotonic() < deadline
        assert probe() == said
        assert daemons[kind].wait(5) == -9, "it is left to Ray to reap it"
        assert probe() == said
    finally:
        for process in daemons.values():
            process.kill()
            process.wait()


def test_a_joined_ray_is_lost_after_some_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = probe_of(monkeypatch, Node({}, f"127.0.0.1:{server.getsockname()[1]}"))
        assert [probe() for _ in range(4)] == [None] * 4
    found = [probe() for _ in range(3)]
    assert found[:2] == [None, None]
    assert "no longer answers" in str(found[2])


def test_without_a_node_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_of(monkeypatch, None)() is None


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCH_SECONDS", "STOP_SECONDS", "INTERRUPT_SECONDS"):
        monkeypatch.setattr(watch_module, name, 0.05)


@pytest.mark.usefixtures("fast")
def test_a_block_that_does_not_end_is_interrupted_once_ray_is_lost() -> None:
    said: list[str] = []
    with ClusterWatch(lambda: "gone", on_loss=said.append, end=lambda: None) as watch:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.001)
        raise AssertionError("nobody interrupted it")
    assert said == ["gone"]
    assert watch.lost()


@pytest.mark.usefixtures("fast")
def test_what_does_not_come_back_at_all_is_ended_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(watch_module, "exit_now", lambda: ended.append("exit"))
    with ClusterWatch(lambda: "gone", on_loss=lambda what: None, end=lambda: ended.append("saved")):
        deadline = time.monotonic() + 10
        while ended != ["saved", "exit"] and time.monotonic() < deadline:
            try:
                time.sleep(0.01)
            except ClusterLostError:  # as C++ code that waits
                continue
    assert ended == ["saved", "exit"]


@pytest.mark.usefixtures("fast")
def test_a_block_that_ends_well_is_left_alone() -> None:
    said: list[str] = []
    with ClusterWatch(lambda: None, on_loss=said.append, end=lambda: said.append("ended")):
        time.sleep(0.2)
    time.sleep(0.1)
    assert said == []


def test_daemons_get_a_session_of_their_own() -> None:
    from ray._private import services

    before, code = services.ConsolePopen, "import os; print(os.getsid(0) == os.getpid())"
    with own_session():
        started = services.ConsolePopen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert started.communicate()[0].strip() == "True"
    assert services.ConsolePopen is before


def test_nothing_is_left_of_a_ray_that_is_abandoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the daemons, nor what they started, nor their folder; of a cluster that was joined nothing is touched."""
    folder = tmp_path / "sdm-abc"
    folder.mkdir()
    raylet = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert raylet.stdout is not None
    worker = int(raylet.stdout.readline())
    node = Node({"raylet": raylet})
    node.get_temp_dir_path = lambda: str(folder)  # type: ignore[attr-defined]
    monkeypatch.setattr("ray._private.worker._global_node", node)
    watch_module._kill_daemons()
    assert raylet.wait(5) == -9
    deadline = time.monotonic() + 10
    while is_running(worker):
        assert time.monotonic() < deadline
    assert not folder.exists()
    joined = Node({})
    joined.get_temp_dir_path = lambda: str(tmp_path)  # type: ignore[attr-defined]
    monkeypatch.setattr("ray._private.worker._global_node", joined)
    watch_module._kill_daemons()
    assert tmp_path.exists()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
