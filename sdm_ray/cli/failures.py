"""Error output of a failed command: one sentence."""

from __future__ import annotations

import errno
import os
import traceback

from rich.markup import escape

from sdm_ray.cli.progress import error_console

MAX_SHOWN = 200
"""Most characters shown of a file's name."""
FILE_FAULTS = {
    errno.ENAMETOOLONG: "shorten the name",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space, and give the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "correct its permissions, or name another"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "correct the path"),
    errno.EIO: "the disk or its file system fails",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""Advice by error number."""


def fault_of_the_machine(error: Exception) -> str | None:
    """A sentence for a file system error that nothing else handled; None for other exceptions."""
    if not isinstance(error, OSError) or error.errno not in FILE_FAULTS:
        return None
    name = str(error.filename or "")
    file = f"cannot use {name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + '...'}: " if name else ""
    return f"{file}{os.strerror(error.errno)}; {FILE_FAULTS[error.errno]}"


def show_failure(kind: str, message: str, *, debug: bool) -> None:
    """Print the error, and with `debug` its traceback."""
    if debug:
        traceback.print_exc()
    error_console.print(f"[bold red]{kind}:[/] {escape(message)}", soft_wrap=True)
