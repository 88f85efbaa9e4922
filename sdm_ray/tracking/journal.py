"""Tracking calls on disk, in order, until they are delivered.

Every call is appended to a JSON-lines file and the length of its delivered part is kept in a second file, so a server
that stays away, or a driver that is killed, loses nothing: the rest is delivered later or by the next process. A call
that was delivered just before a kill may be delivered twice; what applies them must allow for that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """An append-only file of records with a delivered prefix; one process writes, threads may share it.

    Args:
        folder: holds `journal.jsonl` and `delivered`; made if needed.

    Raises:
        OSError: when the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self._mark = folder / "delivered"
        self._file = self.path.open("ab")
        self._end = _whole_lines(self.path)
        self._file.truncate(self._end)  # half a line was left by a kill
        self._delivered = min(_read_mark(self._mark), self._end)
        self._changed = threading.Condition()
        self._closed = False

    def append(self, record: Record) -> None:
        """Add a record; raises OSError when the disk is full."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._changed:
            self._file.write(line)
            self._file.flush()
            self._end += len(line)
            self._changed.notify_all()

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
                records.append(json.loads(line))
                positions.append(position)
        return records, positions

    def acknowledge(self, position: int) -> None:
        """Everything before `position` has been delivered."""
        temporary = self._mark.with_suffix(".new")
        temporary.write_text(str(position))
        temporary.replace(self._mark)
        with self._changed:
            self._delivered = position
            self._changed.notify_all()

    def records(self) -> Iterator[Record]:
        """All records from the first on, delivered or not."""
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)

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


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last newline."""
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


def _read_mark(path: Path) -> int:
    try:
        return max(0, int(path.read_text()))
    except (OSError, ValueError):
        return 0
