"""Ending a sweep early: Ctrl-C and SIGTERM ask once, a second Ctrl-C insists."""

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
    """Turn the first SIGINT or SIGTERM into a request to stop, and the next into `KeyboardInterrupt`.

    Outside the main thread signals are left alone. SIGUSR1, which Tune takes over, is put back as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if switch.reason is not None:
            raise KeyboardInterrupt
        switch.request("interrupted")
        announce("stopping: running trials end at their next step (once more to stop at once)")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None was not set from Python and cannot be put back
                signal.signal(number, handler)
