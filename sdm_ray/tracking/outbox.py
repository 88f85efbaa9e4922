"""Durable queue of tracking calls on disk; a thread delivers them in order, without slowing down the sweep.

Every call is appended to a JSON-lines file; a second file holds the length of the delivered part. A long server outage
or a killed driver therefore loses nothing: the rest is delivered later, or by the next process. A call that was
delivered just before a kill may be delivered twice, so a sink must be idempotent.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from sdm_ray.core.errors import machine_fault
from sdm_ray.core.files import LineFile, move, remove, write_bytes

log = logging.getLogger(__name__)

CHUNK = 64
"""Most records per delivery."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
"""First and longest wait after a failed delivery; the wait doubles with every failure."""
SWEEP_RUN = "-"
"""Trial id of the sweep's own run, the parent of all trials' runs."""
MAX_WARNINGS = 3
"""Most skipped records that are warned about one by one."""
FAULTS = (TypeError, KeyError, IndexError, AttributeError, NameError, AssertionError)
"""Errors in this package's code; retrying does not help."""

Record = dict[str, Any]


class Journal:
    """An append-only file of records with a delivered prefix; one process writes, several threads may share it.

    Records that an earlier process set aside are appended again in their order. Invalid lines are skipped. If the
    length of the delivered part is unknown, everything is delivered again.

    Args:
        folder: holds `journal.jsonl`, `delivered` and, if records were set aside, `undelivered.jsonl`; created if
            needed.

    Raises:
        OSError: if the folder cannot be written.
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
        """Append a record; raises OSError if the disk is full."""
        line = _line(record)
        with self._changed:
            self._file.append(line, sync=record.get("call") != "log")
            self._end = self._file.size
            self._changed.notify_all()

    def set_aside(self, record: Record) -> None:
        """Keep a record that cannot be sent now for the next process; raises OSError if the disk is full."""
        file = LineFile(self.aside, _whole_lines(self.aside))
        try:
            file.append(_line(record))
        finally:
            file.close()

    def rewind(self) -> bool:
        """Mark every record as undelivered; returns whether any had been delivered."""
        with self._changed:
            anything, self._delivered = self._delivered > 0, 0
            self._changed.notify_all()
        return anything

    def begun(self) -> set[str]:
        """Ids of trials, and of the sweep's own run, whose start has been delivered."""
        with self._changed:
            size = self._delivered
        return {str(record.get("trial")) for record in _records(self.path, size) if record["call"] == "start"}

    def pending(self, limit: int) -> tuple[list[Record], list[int]]:
        """The next undelivered records, at most `limit`, and the position to `acknowledge` after each."""
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
            self.acknowledge(position)  # damaged lines only
        return records, positions

    def acknowledge(self, position: int) -> None:
        """Mark everything before `position` as delivered."""
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
        """Block until a record is pending; False if the journal is closed and none is."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._delivered < self._end)
            return self._delivered < self._end

    def wait_delivered(self, timeout_seconds: float) -> bool:
        """Block until everything is delivered; False after the time limit."""
        with self._changed:
            return self._changed.wait_for(lambda: self._delivered >= self._end, timeout_seconds)

    def count_pending(self) -> int:
        """Number of pending records."""
        with self._changed:
            start, end = self._delivered, self._end
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start).count(b"\n")

    def close(self) -> None:
        """Accept no more records; `wait_pending` no longer blocks."""
        with self._changed:
            self._closed = True
            self._file.close()
            self._changed.notify_all()


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _record(line: bytes) -> Record | None:
    """Parse a line; None if it is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("call"), str) else None


def _records(path: Path, size: int | None = None) -> Iterator[Record]:
    """Records of a file, or of its first `size` bytes."""
    with path.open("rb") as file:
        position = 0
        for line in file:
            position += len(line)
            if size is not None and position > size:
                return
            record = _record(line) if line.endswith(b"\n") else None  # a kill can leave a partial line
            if record is not None:
                yield record


def _whole_lines(path: Path) -> int:
    """Number of bytes up to and including the last newline."""
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
    """Number of delivered bytes; 0 if the stored number cannot be right."""
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
    """A record that the server will never accept."""


class Sink(Protocol):
    """Destination of records."""

    def apply(self, records: list[Record]) -> None:
        """Deliver records in order; must be idempotent.

        Raises:
            RejectedError: if one of them can never be delivered.
            Exception: if this attempt failed.
        """


class Delivery:
    """Delivers a journal's records in order, on its own thread.

    While the server is unreachable, it retries. Records that the server rejects permanently are skipped with a warning.
    A record on which this package's own code fails is set aside for the next process, together with later ones that
    depend on it: those of the same trial, or all of them if the sweep's own run could not start.

    Args:
        journal: records to deliver.
        sink: destination.
        connect: called first, on the thread; if it fails, nothing is delivered.
    """

    def __init__(self, journal: Journal, sink: Sink, connect: Callable[[], None] = lambda: None) -> None:
        self._journal, self._sink, self._connect = journal, sink, connect
        self._connected, self._stop, self._hurry = threading.Event(), threading.Event(), threading.Event()
        self._away, self._num_skipped, self._set_aside = False, 0, set[str]()
        self._sweep_is_set_aside = False
        self.error: Exception | None = None
        """Why the first connection failed."""
        self._thread = threading.Thread(target=self._run, name="sdm-ray-tracking", daemon=True)
        self._thread.start()

    def wait_connected(self) -> None:
        """Block until the first attempt to connect has ended; raises its exception if it failed."""
        self._connected.wait()
        if self.error is not None:
            raise self.error

    def close(self, timeout_seconds: float, away_timeout_seconds: float) -> bool:
        """Stop once everything is delivered or time is up; the shorter limit applies while the server is unreachable.

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
            # One at a time while records of any trial are set aside.
            self._away, wait, singles = False, FIRST_WAIT_SECONDS, max(len(self._set_aside), singles - 1)
            try:
                self._journal.acknowledge(positions[-1])
            except OSError as error:
                log.warning("tracking cannot note what it delivered: %s", _brief(error))
                self._pause(LONGEST_WAIT_SECONDS)

    def _builds_on_one_set_aside(self, record: Record) -> bool:
        return record.get("trial") in self._set_aside or self._sweep_is_set_aside

    def _skip(self, record: Record, error: Exception) -> bool:
        """Skip a record that was rejected or on which this package's code failed; the latter is set aside.

        Returns:
            Whether it could be skipped; False if setting it aside failed, so that it stays in the journal.
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
        """Wait before the next attempt; only briefly while the sweep waits for the last records."""
        self._hurry.wait(seconds)
        if self._hurry.is_set():
            self._stop.wait(min(seconds, FIRST_WAIT_SECONDS))


def _brief(error: BaseException) -> str:
    """One line: the machine's fault if there is one, otherwise the message, without the statement of a database."""
    text = machine_fault(error) or " ".join(str(error).split())
    return text.partition(" [SQL: ")[0][:200] or type(error).__name__
