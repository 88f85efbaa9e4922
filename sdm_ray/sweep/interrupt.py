"""Ends a sweep early: the first Ctrl-C, SIGTERM or SIGHUP requests a stop; a second Ctrl-C or SIGTERM forces it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopSwitch:
    """Flag that asks a sweep to stop; once set, it holds the reason."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        """Ask the sweep to stop; later reasons do not replace the first one."""
        self.reason = self.reason or reason


@contextmanager
def stop_on_signals(switch: StopSwitch, announce: Callable[[str], None]) -> Iterator[None]:
    """Convert the first SIGINT, SIGTERM or SIGHUP to a stop request, and a second SIGINT or SIGTERM to
    `KeyboardInterrupt`.

    A repeated SIGHUP is ignored, because a closing terminal may send several. If SIGHUP is ignored already, as under
    `nohup`, it stays ignored. Outside the main thread this does nothing. On exit all handlers are restored, including
    that of SIGUSR1, which Tune replaces.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if switch.reason is not None:
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        switch.request("interrupted")
        announce("stopping: running trials end at their next step (once more to stop at once)")

    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in (*taken, signal.SIGUSR1)}
    for number in taken:
        if before[number] is not signal.SIG_IGN or number != signal.SIGHUP:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set from Python, so it cannot be restored
                signal.signal(number, handler)
