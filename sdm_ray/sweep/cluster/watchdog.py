"""Ends a worker process that hangs, and writes a stack trace."""

from __future__ import annotations

import faulthandler
from pathlib import Path

HANG = "hang.txt"
"""File in the trial's folder with the stack trace of a hung process."""


class Watchdog:
    """Ends the process if a step takes too long, even in native code; `hang.txt` then holds every thread's stack.

    Args:
        folder: folder of the trial.
        seconds: time limit of a step; None disables the watchdog.
    """

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self._path, self._seconds = folder / HANG, seconds

    def __enter__(self) -> Watchdog:
        self._file = None if self._seconds is None else self._path.open("w")
        return self

    def begin_step(self) -> None:
        """Restart the timer for the next step."""
        if self._seconds is not None and self._file is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink(missing_ok=True)


def hang_dump(folder: Path) -> int | None:
    """Time at which the watchdog ended a trial's process, in nanoseconds since 1970; None if it did not.

    A process that was killed otherwise leaves an empty file, which does not count.
    """
    try:
        found = (folder / HANG).stat()
    except OSError:
        return None
    return found.st_mtime_ns if found.st_size > 0 else None
