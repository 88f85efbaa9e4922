"""The two errors shown to users: one clear sentence each, with what, where, the value, the fix.

The command line prints the message without a traceback and exits with `exit_code`; library callers catch them as the
built-in exceptions that they derive from. Several faults of one request are a single error with one line each.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class UsageError(ValueError):
    """The request cannot be carried out: a bad setting, a missing file, an absent column."""

    exit_code = 2


class Faults:
    """Collects faults, so that all of them are reported together."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def check(self, function: Callable[..., object], *arguments: Any, **options: Any) -> bool:
        """Call a function and collect its `UsageError`; True if it raises none."""
        try:
            function(*arguments, **options)
        except UsageError as error:
            self.add(str(error))
            return False
        return True

    def add(self, *faults: str) -> None:
        """Add sentences, without duplicates."""
        self._found += [fault for fault in faults if fault not in self._found]

    def refuse(self) -> None:
        """Raise the collected faults as one error, one fault per line.

        Raises:
            UsageError: if there is a fault.
        """
        if self._found:
            raise UsageError(listed(self._found))


def listed(faults: Sequence[str]) -> str:
    """Format faults: a single one unchanged, several as one line each."""
    if len(faults) == 1:
        return faults[0]
    return f"{len(faults)} faults:" + "".join(f"\n  {fault}" for fault in faults)


class RunError(RuntimeError):
    """A valid request failed during its execution: no network, a full disk, a diverged run."""

    exit_code = 1


class DamagedError(RunError):
    """A file is readable, but its contents are damaged."""


MACHINE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Operating system errors caused by the machine, not by the program on it."""
_IN_WORDS = re.compile(
    rf"os error ({'|'.join(map(str, MACHINE_FAULTS))})\b|No space left on device|Disk quota exceeded|"
    "database or disk is full|disk I/O error|attempt to write a readonly database"
)
"""Messages of the same errors from libraries that raise their own exceptions."""


def machine_fault(error: BaseException) -> str | None:
    """Describe the machine's fault if it caused an error: a full, read-only or broken disk; otherwise None."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in MACHINE_FAULTS:
            return f"{cause.strerror}: {cause.filename}" if cause.filename else str(cause.strerror or cause)
        if not isinstance(cause, OSError | UsageError) and _IN_WORDS.search(str(cause)):
            return " ".join(str(cause).split())[:300]
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its chain of causes and contexts (suppressed ones too), the original one first."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    yield from reversed(chain)
