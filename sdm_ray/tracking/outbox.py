"""Tracking calls wait on disk, in order, and a thread delivers them at the pace of the server, never of the sweep.

Every call is appended to a JSON-lines file, and the length of its delivered part is kept in a second file. So a server
that stays away, or a driver that is killed, loses nothing: the rest is delivered later, or by the next process. A call
that was delivered just before a kill may be delivered twice; what applies them must allow for that.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from sdm_ray.core.files import LineFile, move, remove, write_bytes

log = logging.getLogger(__name__)

CHUNK = 64
"""Most records that are handed over at once."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
"""Wait after a failed delivery; it doubles with every failure."""
SWEEP_RUN = "-"
"""The trial id of the sweep's own run, which the runs of all trials belong to."""
MAX_WARNINGS = 3
"""Skipped records that are worth a warning each."""
FAULTS = (TypeError, KeyError, IndexError, AttributeError, NameError, AssertionError)
"""Errors of our own code, which no waiting for the server cures."""

Record = dict[str, Any]


class Journal:
    """An append-only file of records with a delivered prefix; one process writes, threads may share it.

    Records that an earlier process set aside come back at the end, in their order. A line that is no record is skipped,
    and where the delivered part cannot be told, all is delivered again.

    Args:
        folder: holds `journal.jsonl`, `delivered` and, where records were set aside, `undelivered.jsonl`; made if
            needed.

    Raises:
        OSError: when the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self._mark = folder / "delivered"
        self._file = LineFile(self.path, _whole_lines(self.path))
        self._end = self._file.size
        self._delivered = _read_mark(self._mark, self.path, self._end)
        self._changed = threading.Condition()
        self._closed = False
        self.aside = folder / "undelivered.jsonl"
        if self.aside.exists():
            for record in _records(self.aside):
                self.append(record)
            remove(self.aside)

    def append(self, record: Record) -> None:
        """Add a record; raises OSError when the disk is full."""
        line = _line(record)
        with self._changed:
            self._file.append(line, sync=record.get("call") != "log")
            self._end = self._file.size
            self._changed.notify_all()

    def set_aside(self, record: Record) -> None:
        """Keep a record that cannot be sent now for the next process; raises OSError when the disk is full."""
        file = LineFile(self.aside, _whole_lines(self.aside))
        try:
            file.append(_line(record))
        finally:
            file.close()

    def rewind(self) -> bool:
        """Deliver everything again, from the first record on; whether anything had been."""
        with self._changed:
            anything, self._delivered = self._delivered > 0, 0
            self._changed.notify_all()
        return anything

    def begun(self) -> set[str]:
        """Trials, and the sweep's own run, whose beginning has been delivered."""
        with self._changed:
            size = self._delivered
        return {str(record.get("trial")) for record in _records(self.path, size) if record["call"] == "start"}

    def pending(self, limit: int) -> tuple[list[Record], list[int]]:
        """The next undelivered records, at most `limit`, and for each the position that `acknowledge` takes."""
        records: list[Record] = []
        positions: list[int] = []
        with self._changed:
            position, end = self._delivered, self._end
        with self.path.open("rb") as file:
            file.seek(position)
            while position < end and len(records) < limit:
                line = file.readline()
                position += len(line)
                record = _record(line)
                if record is not None:
                    records.append(record)
                    positions.append(position)
                elif positions:
                    positions[-1] = position
        if not records and position > self._delivered:
            self.acknowledge(position)  # nothing but damaged lines
        return records, positions

    def acknowledge(self, position: int) -> None:
        """Everything before `position` has been delivered."""
        temporary = self._mark.with_suffix(".new")
        write_bytes(temporary, str(position).encode())
        move(temporary, self._mark)
        with self._changed:
            self._delivered = position
            self._changed.notify_all()

    def records(self) -> Iterator[Record]:
        """All records from the first on, delivered or not."""
        yield from _records(self.path)

    def wait_pending(self) -> bool:
        """Block until there is something to deliver; False once the journal is closed and there is not."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._delivered < self._end)
            return self._delivered < self._end

    def wait_delivered(self, timeout_seconds: float) -> bool:
        """Block until everything is delivered; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._delivered >= self._end, timeout_seconds)

    def count_pending(self) -> int:
        """Records that wait."""
        with self._changed:
            start, end = self._delivered, self._end
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start).count(b"\n")

    def close(self) -> None:
        """No more records; `wait_pending` no longer blocks."""
        with self._changed:
            self._closed = True
            self._file.close()
            self._changed.notify_all()


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _record(line: bytes) -> Record | None:
    """What a line says; None for one that is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("call"), str) else None


def _records(path: Path, size: int | None = None) -> Iterator[Record]:
    """The records of a file, or of its first `size` bytes."""
    with path.open("rb") as file:
        position = 0
        for line in file:
            position += len(line)
            if size is not None and position > size:
                return
            record = _record(line) if line.endswith(b"\n") else None  # half a line was left by a kill
            if record is not None:
                yield record


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last newline."""
    if not path.exists():
        return 0
    size = path.stat().st_size
    with path.open("rb") as file:
        while size > 0:
            start = max(0, size - 65_536)
            file.seek(start)
            newline = file.read(size - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            size = start
    return 0


def _read_mark(mark: Path, path: Path, end: int) -> int:
    """Bytes that have been delivered; 0 where the record of it cannot be right."""
    try:
        position = int(mark.read_text())
        if not 0 < position <= end:
            return 0
        with path.open("rb") as file:
            file.seek(position - 1)
            return position if file.read(1) == b"\n" else 0
    except (OSError, ValueError):
        return 0


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


class Delivery:
    """Delivers a journal's records in order, on a thread of its own.

    While the server is away, it tries again; what the server refuses for good is skipped with a warning. A record on
    which our own code fails is set aside for the next process, and so are the later ones that build on it: those of
    the same trial, and all of them where the sweep's own run could not begin.

    Args:
        journal: the records.
        sink: where they go.
        connect: comes first, on the thread; where it fails, nothing is delivered.
    """

    def __init__(self, journal: Journal, sink: Sink, connect: Callable[[], None] = lambda: None) -> None:
        self._journal, self._sink, self._connect = journal, sink, connect
        self._connected, self._stop, self._hurry = threading.Event(), threading.Event(), threading.Event()
        self._away, self._num_skipped, self._set_aside = False, 0, set[str]()
        self._sweep_is_set_aside = False
        self.error: Exception | None = None
        """Why it could not connect at first."""
        self._thread = threading.Thread(target=self._run, name="sdm-ray-tracking", daemon=True)
        self._thread.start()

    def wait_connected(self) -> None:
        """Block until the first attempt to connect has ended; raises what made it fail."""
        self._connected.wait()
        if self.error is not None:
            raise self.error

    def close(self, timeout_seconds: float, away_timeout_seconds: float) -> bool:
        """Stop when all is delivered, or when the time is up; the shorter one counts while the server is away.

        Returns:
            Whether everything has been delivered.
        """
        self._hurry.set()
        start = time.monotonic()
        while not (delivered := self._journal.wait_delivered(0.1)) and self.error is None:
            if time.monotonic() - start > (away_timeout_seconds if self._away else timeout_seconds):
                break
        self._stop.set()
        self._journal.close()
        self._thread.join(timeout=1.0)
        return delivered and not self._set_aside

    def _run(self) -> None:
        try:
            self._connect()
        except Exception as error:
            self.error = error
            return
        finally:
            self._connected.set()
        self._deliver()

    def _deliver(self) -> None:
        wait, singles = FIRST_WAIT_SECONDS, 0
        while not self._stop.is_set() and self._journal.wait_pending():
            records, positions = self._journal.pending(1 if singles else CHUNK)
            if not records:
                continue
            try:
                if len(records) == 1 and self._builds_on_one_set_aside(records[0]):
                    self._journal.set_aside(records[0])
                else:
                    self._sink.apply(records)
            except (RejectedError, *FAULTS) as error:
                if len(records) > 1:
                    singles = len(records)
                    continue
                if not self._skip(records[0], error):
                    self._pause(LONGEST_WAIT_SECONDS)
                    continue
            except Exception as error:  # a server may fail in any way; the sweep goes on
                if not self._away:
                    log.warning("tracking is interrupted, records wait in %s: %s", self._journal.path, _brief(error))
                self._away = True
                self._pause(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
                continue
            if self._away:
                log.warning("tracking goes on")
            # One by one as long as any trial's records are set aside.
            self._away, wait, singles = False, FIRST_WAIT_SECONDS, max(len(self._set_aside), singles - 1)
            try:
                self._journal.acknowledge(positions[-1])
            except OSError as error:
                log.warning("tracking cannot note what it delivered: %s", _brief(error))
                self._pause(LONGEST_WAIT_SECONDS)

    def _builds_on_one_set_aside(self, record: Record) -> bool:
        return record.get("trial") in self._set_aside or self._sweep_is_set_aside

    def _skip(self, record: Record, error: Exception) -> bool:
        """Go on without a record that was refused, or on which our own code failed; the latter is kept.

        Returns:
            Whether that is possible; False where the latter cannot be written, so that it stays where it is.
        """
        if isinstance(error, RejectedError):
            level = logging.WARNING if self._num_skipped < MAX_WARNINGS else logging.DEBUG
            log.log(level, "tracking skips a record (%s): %s", record.get("call"), error)
            self._num_skipped += 1
            return True
        try:
            self._journal.set_aside(record)
        except OSError as full:
            log.warning("tracking waits: a record cannot be kept in %s: %s", self._journal.aside, _brief(full))
            return False
        if not self._set_aside:
            log.error(
                "a fault of sdm-ray keeps a record (%s) from tracking: %s: %s; it waits in %s for the next run",
                record.get("call"), type(error).__name__, error, self._journal.aside, exc_info=error,
            )  # fmt: skip
        self._set_aside.add(record.get("trial", ""))
        self._sweep_is_set_aside |= record.get("trial") == SWEEP_RUN and record.get("call") == "start"
        return True

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt; while the sweep waits for the last records, not for long."""
        self._hurry.wait(seconds)
        if self._hurry.is_set():
            self._stop.wait(min(seconds, FIRST_WAIT_SECONDS))


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
