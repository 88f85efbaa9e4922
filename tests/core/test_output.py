"""Output that nobody reads any more ends nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from sdm_ray.core.output import Unbreakable

CODE = """
import os, sys
from sdm_ray.core.output import unbreakable_output
with unbreakable_output():
    for _ in range(3):
        print("x" * 100_000, flush=True)
    print("error", file=sys.stderr)
print("after", flush=True)
os.write(3, b"whole")
"""


def test_a_closed_pipe_ends_nothing() -> None:
    """Neither within the block nor after it."""
    read, write = os.pipe()
    closed_read, closed_write = os.pipe()
    os.close(closed_read)
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.dup2({write}, 3)\n{CODE}"],
        stdout=closed_write,
        stderr=closed_write,
        pass_fds=(write,),
    )
    os.close(closed_write)
    os.close(write)
    assert done.returncode == 0
    assert os.read(read, 10) == b"whole"
    os.close(read)


class Broken:
    """A stream whose reader is gone, or whose disk is full."""

    def __init__(self, number: int) -> None:
        self.number, self.writes = number, 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise OSError(self.number, "broken")

    def fileno(self) -> int:
        raise ValueError("no file")


def test_only_a_reader_that_is_gone_is_no_fault() -> None:
    for number in (errno.EPIPE, errno.EIO):
        assert Unbreakable(Broken(number)).write("text") == 4
    with pytest.raises(OSError, match="broken"):
        Unbreakable(Broken(errno.ENOSPC)).write("text")
