"""The thread that carries journaled calls to a tracking server, at the server's pace and never at the sweep's."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from sdm_ray.tracking.journal import Journal, Record

log = logging.getLogger(__name__)

CHUNK = 64
"""Most records that are handed over at once."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
"""Wait after a failed delivery; it doubles with every failure."""

MAX_WARNINGS = 3
"""Skipped records that are worth a warning each."""


class RejectedError(Exception):
    """A record that the server will never take, however often it is offered."""


class Sink(Protocol):
    """Where records go."""

    def apply(self, records: list[Record]) -> None:
        """Deliver records in order; may be offered the same ones again.

        Raises:
            RejectedError: when one of them can never be delivered.
            Exception: when this time it did not work.
        """


class Courier:
    """Delivers a journal's records in order; retries while the server is away; skips what the server rejects.

    Args:
        journal: the records.
        sink: where they go.
    """

    def __init__(self, journal: Journal, sink: Sink) -> None:
        self._journal, self._sink = journal, sink
        self._stop, self._hurry = threading.Event(), threading.Event()
        self._away, self._num_skipped = False, 0
        self._thread = threading.Thread(target=self._run, name="sdm-ray-tracking", daemon=True)
        self._thread.start()

    def close(self, timeout_seconds: float, away_timeout_seconds: float) -> bool:
        """Stop when all is delivered, or when the time is up; the shorter one counts while the server is away.

        Returns:
            Whether everything has been delivered.
        """
        self._hurry.set()
        start = time.monotonic()
        while not (delivered := self._journal.wait_delivered(0.1)):
            if time.monotonic() - start > (away_timeout_seconds if self._away else timeout_seconds):
                break
        self._stop.set()
        self._journal.close()
        self._thread.join(timeout=1.0)
        return delivered

    def _run(self) -> None:
        wait, singles = FIRST_WAIT_SECONDS, 0
        while not self._stop.is_set() and self._journal.wait_pending():
            records, positions = self._journal.pending(1 if singles else CHUNK)
            try:
                self._sink.apply(records)
            except RejectedError as error:
                if len(records) > 1:
                    singles = len(records)
                    continue
                level = logging.WARNING if self._num_skipped < MAX_WARNINGS else logging.DEBUG
                log.log(level, "tracking skips a record (%s): %s", records[0].get("call"), error)
                self._num_skipped += 1
            except Exception as error:  # a server may fail in any way; the sweep goes on
                if not self._away:
                    log.warning("tracking is interrupted, records wait in %s: %s", self._journal.path, _brief(error))
                self._away = True
                self._pause(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
                continue
            if self._away:
                log.warning("tracking goes on")
            self._away, wait, singles = False, FIRST_WAIT_SECONDS, max(0, singles - 1)
            try:
                self._journal.acknowledge(positions[-1])
            except OSError as error:
                log.warning("tracking cannot note what it delivered: %s", _brief(error))
                self._pause(LONGEST_WAIT_SECONDS)

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt; while the sweep waits for the last records, not for long."""
        self._hurry.wait(seconds)
        if self._hurry.is_set():
            self._stop.wait(min(seconds, FIRST_WAIT_SECONDS))


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
