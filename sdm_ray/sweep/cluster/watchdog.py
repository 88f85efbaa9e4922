"""Ends a worker process that hangs, and tells where it hung."""

from __future__ import annotations

import faulthandler
from pathlib import Path

HANG = "hang.txt"
"""Where a hung process was, in the trial's folder."""


class Watchdog:
    """Ends the process when a step takes too long, whatever it hangs in; `hang.txt` then holds every thread's stack.

    Args:
        folder: of the trial.
        seconds: that a step may take; None watches nothing.
    """

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self._path, self._seconds = folder / HANG, seconds

    def __enter__(self) -> Watchdog:
        self._file = None if self._seconds is None else self._path.open("w")
        return self

    def begin_step(self) -> None:
        """A step begins, and the one before has ended."""
        if self._seconds is not None and self._file is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink(missing_ok=True)


def hang_dump(folder: Path) -> int | None:
    """When the process of a trial ended itself, in nanoseconds since 1970; None where none did.

    One that was killed leaves the file too, with nothing in it.
    """
    try:
        found = (folder / HANG).stat()
    except OSError:
        return None
    return found.st_mtime_ns if found.st_size > 0 else None
