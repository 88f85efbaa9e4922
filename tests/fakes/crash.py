"""Ends a program at one of its writes, renames, removals or syncs, as a kill would: nothing is written any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sdm_ray.core import files

HOOKS = ("_write", "_truncate", "_sync", "_rename", "_remove")


class Killed(BaseException):
    """The program has ended."""


class Death:
    """Counts what `core/files.py` does, and ends the program before the operation of a number.

    Args:
        at: the number, from 1; None only counts.
        torn: where that operation is a write, half of it is written.
    """

    def __init__(self, at: int | None, *, torn: bool = False) -> None:
        self.at, self.torn, self.count, self.is_dead = at, torn, 0, False
        self.where = ""
        self.visits: dict[int, Callable[[], None]] = {}
        """What the main thread does before operations of these numbers, or as soon as it writes after them."""
        self._lock = threading.RLock()

    def wrap(self, name: str, function: Callable[..., None]) -> Callable[..., None]:
        """A function that may end the program."""

        def call(*arguments: Any) -> None:
            with self._lock:
                if self.is_dead:
                    raise Killed
                self.count += 1
                if threading.current_thread() is threading.main_thread():
                    for number in sorted(number for number in self.visits if number <= self.count):
                        self.visits.pop(number)()
                if self.count == self.at:
                    self.is_dead, self.where = True, f"{name}{arguments}"[:300]
                    if self.torn and name == "_write":
                        file, content = arguments
                        function(file, bytes(content)[: len(content) // 2])
                    raise Killed
                function(*arguments)

        return call


@contextmanager
def death(at: int | None = None, *, torn: bool = False) -> Iterator[Death]:
    """See `Death`; after the block, everything is as it was, and the program can be started again."""
    made = Death(at, torn=torn)
    with pytest.MonkeyPatch.context() as patch:
        for name in HOOKS:
            patch.setattr(files, name, made.wrap(name, getattr(files, name)))
        yield made
        made.is_dead = True  # threads of the dead program write nothing more
