"""The two errors that reach a user, each one clear sentence: what, where, the value, the fix.

The command line prints the message without a traceback and exits with `exit_code`; library callers catch them as the
built-in exceptions that they derive from. Several things that are wrong with one request are one error, a line each.
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
    """Collects faults, so that all of them are reported at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def check(self, function: Callable[..., object], *arguments: Any, **options: Any) -> bool:
        """Call a function and collect the `UsageError` that it raises; True where it raises none."""
        try:
            function(*arguments, **options)
        except UsageError as error:
            self.add(str(error))
            return False
        return True

    def add(self, *faults: str) -> None:
        """Add sentences; one that is there already stays once."""
        self._found += [fault for fault in faults if fault not in self._found]

    def refuse(self) -> None:
        """Raise the collected faults as one error, one fault a line.

        Raises:
            UsageError: where there is a fault.
        """
        if self._found:
            raise UsageError(listed(self._found))


def listed(faults: Sequence[str]) -> str:
    """One fault as it is, several one a line."""
    if len(faults) == 1:
        return faults[0]
    return f"{len(faults)} faults:" + "".join(f"\n  {fault}" for fault in faults)


class RunError(RuntimeError):
    """A well-formed request failed on the way: no network, a full disk, a diverged run."""

    exit_code = 1


class DamagedError(RunError):
    """A file could be read, and does not hold what was written to it."""


MACHINE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of the operating system that say something of the machine and nothing of what was run on it."""
_IN_WORDS = re.compile(
    rf"os error ({'|'.join(map(str, MACHINE_FAULTS))})\b|No space left on device|Disk quota exceeded|"
    "database or disk is full"
)
"""The same, from libraries that raise errors of their own."""


def machine_fault(error: BaseException) -> str | None:
    """What is wrong with the machine, where an error comes from that: a full, read-only or broken disk; else None."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in MACHINE_FAULTS:
            return f"{cause.strerror}: {cause.filename}" if cause.filename else str(cause.strerror or cause)
        if not isinstance(cause, OSError | UsageError) and _IN_WORDS.search(str(cause)):
            return " ".join(str(cause).split())[:300]
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from, also those that are not to be shown, the first one first."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    yield from reversed(chain)
