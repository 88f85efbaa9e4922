"""Folder lock that the operating system releases when the holding process ends, even after a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from sdm_ray.core.errors import RunError

BUSY = (errno.EACCES, errno.EAGAIN)


class InUse(RunError):
    """Another process holds the lock."""


class FolderLock:
    """`flock` on a file that contains its holder; a file left by a dead process locks nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, *, wait_seconds: float = 0.0) -> None:
        """Acquire the lock.

        Raises:
            InUse: naming the process that holds it.
            RunError: if the folder cannot be written.
        """
        deadline = time.monotonic() + wait_seconds
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            hint = "; remove it" if isinstance(error, IsADirectoryError) else ""
            raise RunError(f"cannot write {self.path}: {error.strerror or error}{hint}") from None
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in BUSY:
                    break  # the file system has no locks: go on without
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    file.close()
                    raise InUse(f"{self.path.parent} is in use by {holder}") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def holder_of(path: Path) -> str | None:
    """Holder of a folder's lock, without acquiring it; None if it is free.

    Raises:
        RunError: if the lock cannot be read.
    """
    try:
        opened = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(
            f"cannot read the lock {path}: {error.strerror or error}; remove it if nobody runs there"
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return (file.read().strip() or "another process") if error.errno in BUSY else None
    return None
