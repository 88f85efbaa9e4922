"""Detects that Ray itself died during a sweep, because calls to a dead Ray block for a minute or forever.

For a private Ray, its processes are checked; for an external cluster, whether its address accepts connections. When Ray
is lost, the sweep is asked to stop. If Tune does not return, its thread is interrupted by an exception. If that does
not help either, because the thread blocks in Ray's code, the watching thread saves the sweep and ends the process.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

WATCH_SECONDS = 1.0
"""Interval between two checks."""
ANSWER_SECONDS = 3.0
MAX_MISSED = 3
"""Consecutive failed connections to an external cluster, after which it counts as lost."""
STOP_SECONDS, INTERRUPT_SECONDS = 4.0, 6.0
"""Time for Tune to stop by itself, and then to react to the interruption."""
FOLDER = "sdm-"
"""Name prefix of the temporary folder of a private Ray."""
EXIT_CODE = 130
"""Exit code of an interrupted process."""
_DAEMONS = {"raylet": "raylet", "gcs_server": "GCS"}

Probe = Callable[[], str | None]


class ClusterLostError(BaseException):
    """Raised in the thread that waits for Ray; a `BaseException`, so that Tune's `except Exception` ignores it."""


def cluster_probe() -> Probe:
    """Return a function that checks the Ray of this process, and returns a description of the loss, or None."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    if node is None:
        return lambda: None
    daemons = [(name, infos[0].process) for kind, name in _DAEMONS.items() if (infos := node.all_processes.get(kind))]
    if daemons:
        return lambda: next((f"Ray's {name} has died" for name, process in daemons if _is_dead(process)), None)
    return _AddressProbe(str(node.gcs_address))


class _AddressProbe:
    """Checks that an address accepts connections; reports a loss after `MAX_MISSED` consecutive failures."""

    def __init__(self, address: str) -> None:
        self._address, self._num_missed = address, 0

    def __call__(self) -> str | None:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except (OSError, ValueError):
            self._num_missed += 1
        else:
            self._num_missed = 0
        return f"Ray at {self._address} no longer answers" if self._num_missed >= MAX_MISSED else None


def _is_dead(process: Any) -> bool:
    """Whether a child process has ended, even if it is still a zombie; it is not reaped, because Ray polls it too."""
    if process.returncode is not None:
        return True
    try:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # already reaped
        return True
    return found is not None


class ClusterWatch:
    """Context manager that checks Ray from a thread while the calling thread waits for Ray.

    Args:
        probe: function that checks Ray, see `cluster_probe`.
        on_loss: called once from the watching thread with a description of the loss; asks the sweep to stop.
        end: called from the watching thread if the block does not end: saves the sweep before the process is ended.
    """

    def __init__(self, probe: Probe, *, on_loss: Callable[[str], None], end: Callable[[], None]) -> None:
        self._probe, self._on_loss, self._end = probe, on_loss, end
        self._done = threading.Event()
        self._waiting = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="sdm-ray-cluster-watch", daemon=True)
        self._found: str | None = None

    def lost(self) -> bool:
        """Whether Ray is lost, according to the latest check."""
        if self._found is None and not self._done.is_set():
            self._found = self._probe()
        return self._found is not None

    def __enter__(self) -> ClusterWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> bool:
        self._done.set()
        return kind is ClusterLostError

    def _watch(self) -> None:
        while not self.lost():
            if self._done.wait(WATCH_SECONDS):
                return
        self._on_loss(str(self._found))
        if self._done.wait(STOP_SECONDS):
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._waiting), ctypes.py_object(ClusterLostError))
        if self._done.wait(INTERRUPT_SECONDS):
            return
        with suppress(Exception):
            self._end()
        exit_now()


def exit_now() -> None:
    """End the process without Ray's exit handlers, which would wait a minute for dead daemons and then abort."""
    _kill_daemons()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(EXIT_CODE)


def abandon_ray() -> None:
    """Kill the rest of a private Ray that lost a daemon, and make this process exit by `exit_now`."""
    import ray

    atexit.unregister(ray.shutdown)
    atexit.unregister(exit_now)
    atexit.register(exit_now)  # handlers run in reverse order of registration
    _kill_daemons()


def _kill_daemons() -> None:
    """Kill the daemons and workers of a private Ray, and remove its folder."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    daemons = [info.process for infos in list(getattr(node, "all_processes", {}).values()) for info in infos]
    for process in daemons:
        with suppress(OSError):
            if os.getpgid(process.pid) == process.pid:  # kills its workers and agents too
                os.killpg(process.pid, signal.SIGKILL)
        with suppress(OSError):
            process.kill()
    folder = Path(node.get_temp_dir_path()) if node is not None and daemons else None
    if folder is not None and folder.name.startswith(FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
