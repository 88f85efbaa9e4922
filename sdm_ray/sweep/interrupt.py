"""Ending a sweep early: Ctrl-C, SIGTERM and SIGHUP ask once, a second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopSwitch:
    """Asks a sweep to end; holds the reason once it is set."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        """Ask the sweep to end; the first reason stays."""
        self.reason = self.reason or reason


@contextmanager
def stop_on_signals(switch: StopSwitch, announce: Callable[[str], None]) -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to stop, and the next into `KeyboardInterrupt`.

    A terminal that closes may send SIGHUP more than once, which therefore never insists, and `nohup` has it ignored.
    Outside the main thread signals are left alone. SIGUSR1, which Tune takes over, is put back as well.
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
            if handler is not None:  # None was not set from Python and cannot be put back
                signal.signal(number, handler)
