"""Finds out that Ray itself has died under a sweep, whose own calls would wait for it for a minute or for ever.

Of a private Ray, its processes are looked at; of one that was joined, whether its address still answers. Once it is
lost, the sweep is asked to stop; where Tune does not come back, it is interrupted; where it still does not come back
from Ray's own code, the sweep is ended from the watching thread and the process with it.
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
"""Between two looks."""
ANSWER_SECONDS = 3.0
MAX_MISSED = 3
"""Looks in a row at which the address of a joined cluster may fail to answer."""
STOP_SECONDS, INTERRUPT_SECONDS = 4.0, 6.0
"""How long Tune may take to stop by itself, and then to be interrupted."""
FOLDER = "sdm-"
"""Begins the name of the temporary folder of a private Ray."""
EXIT_CODE = 130
"""That of an interruption."""
_DAEMONS = {"raylet": "raylet", "gcs_server": "GCS"}

Probe = Callable[[], str | None]


class ClusterLostError(BaseException):
    """Raised in the thread that waits for Ray; no `except Exception` of Tune's is to take it."""


def cluster_probe() -> Probe:
    """What looks whether the Ray that this process is connected to is there: gives what is lost, or None."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    if node is None:
        return lambda: None
    daemons = [(name, infos[0].process) for kind, name in _DAEMONS.items() if (infos := node.all_processes.get(kind))]
    if daemons:
        return lambda: next((f"Ray's {name} has died" for name, process in daemons if _is_dead(process)), None)
    return _AddressProbe(str(node.gcs_address))


class _AddressProbe:
    """Whether somebody listens at an address; a few looks may fail."""

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
    """Whether a process of ours has ended, also where it is still a zombie; it is not reaped, for Ray looks at it."""
    if process.returncode is not None:
        return True
    try:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # somebody else has reaped it
        return True
    return found is not None


class ClusterWatch:
    """Watches Ray from a thread, for the time of a block in which the calling thread waits for it.

    Args:
        probe: see `cluster_probe`.
        on_loss: called once from the thread, with what was lost; asks the sweep to stop.
        end: called from the thread where the block does not end: saves what there is. The process ends after it.
    """

    def __init__(self, probe: Probe, *, on_loss: Callable[[str], None], end: Callable[[], None]) -> None:
        self._probe, self._on_loss, self._end = probe, on_loss, end
        self._done = threading.Event()
        self._waiting = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="sdm-ray-cluster-watch", daemon=True)
        self._found: str | None = None

    def lost(self) -> bool:
        """Whether Ray is lost, as far as can be told now."""
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
    """End the process without Ray's own code, which would wait a minute for what is gone and then abort it."""
    _kill_daemons()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(EXIT_CODE)


def abandon_ray() -> None:
    """End what is left of a private Ray that has lost a daemon, and let this process end by `exit_now`."""
    import ray

    atexit.unregister(ray.shutdown)
    atexit.unregister(exit_now)
    atexit.register(exit_now)  # the last one registered comes first
    _kill_daemons()


def _kill_daemons() -> None:
    """Kill the daemons and workers of a private Ray, and remove its folder."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    daemons = [info.process for infos in list(getattr(node, "all_processes", {}).values()) for info in infos]
    for process in daemons:
        with suppress(OSError):
            if os.getpgid(process.pid) == process.pid:  # with the workers and agents that it started
                os.killpg(process.pid, signal.SIGKILL)
        with suppress(OSError):
            process.kill()
    folder = Path(node.get_temp_dir_path()) if node is not None and daemons else None
    if folder is not None and folder.name.startswith(FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
