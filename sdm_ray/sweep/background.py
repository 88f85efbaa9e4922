"""Slow side work of the driver (MLflow calls, tables and pictures) on threads of its own, so that trials never wait."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdm_ray.core.result import TrialResult
from sdm_ray.tracking.base import Tracker

log = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0
"""How long the end of a sweep waits for what is still queued."""


class TrackerThread:
    """Calls a tracker in order on one thread. A call that raises is reported once and never reaches the sweep.

    Args:
        open_tracker: makes it, on the thread.
        warn: tells people.
        fetch: brings the folder of a trial that has ended to this machine.
    """

    def __init__(
        self,
        open_tracker: Callable[[], Tracker],
        *,
        warn: Callable[[str], None],
        fetch: Callable[[str], None] = lambda trial_id: None,
    ) -> None:
        self._open = open_tracker
        self._warn = warn
        self._fetch = fetch
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._warned = False
        self.error: Exception | None = None
        """Why the tracker could not be opened, or the sweep not be registered."""
        self.hint = ""
        """What the tracker says about its user interface, once it is open."""
        self._thread = threading.Thread(target=self._run, name="sdm-ray-tracker", daemon=True)

    def start_sweep(self, name: str, settings: dict[str, Any], tags: dict[str, str]) -> None:
        """Open the tracker and register the sweep, on the thread."""
        self._first = (name, settings, tags)
        self._thread.start()

    def start_trial(self, trial_id: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        """As the tracker's."""
        self._calls.put(("start_trial", (trial_id, params, tags)))

    def log(self, trial_id: str, metrics: dict[str, float], step: int) -> None:
        """As the tracker's."""
        self._calls.put(("log", (trial_id, metrics, step)))

    def finish_trial(self, result: TrialResult) -> None:
        """As the tracker's."""
        self._calls.put(("finish_trial", (result,)))

    def log_sweep_artifacts(self, files: list[Path]) -> None:
        """As the tracker's."""
        self._calls.put(("log_sweep_artifacts", (files,)))

    def close(self, status: str) -> None:
        """Finish the sweep and wait for the thread, at most `CLOSE_SECONDS`."""
        self._calls.put(("finish_sweep", (status,)))
        self._calls.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn_once(f"it still had calls to make {CLOSE_SECONDS:.0f} s after the sweep's end")

    def _run(self) -> None:
        try:
            tracker = self._open()
            tracker.start_sweep(*self._first)
            self.hint = tracker.ui_hint()
        except Exception as error:
            self.error = error
            return
        while (call := self._calls.get()) is not None:
            method, arguments = call
            try:
                if method == "finish_trial":
                    self._fetch(arguments[0].trial_id)
                getattr(tracker, method)(*arguments)
            except Exception as error:
                self._warn_once(f"{method}: {' '.join(str(error).split())[:200]}")
        self.hint = tracker.ui_hint()  # by now it can name the trials

    def _warn_once(self, problem: str) -> None:
        log.debug("tracking: %s", problem, exc_info=True)
        if not self._warned:
            self._warned = True
            self._warn(f"tracking failed ({problem}); the sweep goes on, but its MLflow run may lack data")
