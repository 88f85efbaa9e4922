"""What kind a failure is, and how it is told."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.sweep.cluster.failures import Failure, classify, failure_of


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UsageError("no such column"), "no such column"),
        (RunError("diverged\nat step 3"), "diverged at step 3"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model"), "No space left on device: model"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of GPU memory"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 300),
    ],
)
def test_reasons_are_one_line(error: Exception, words: str) -> None:
    reason = classify(error)
    assert reason.startswith(words)
    assert len(reason) < 400
    assert "\n" not in reason


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_fault_of_the_machine_is_told_from_one_of_the_trial(number: int) -> None:
    """Also where it was made a sentence of, or where a library has an error of its own for it."""
    raised = OSError(number, "it broke", "file")
    assert failure_of(raised) is Failure.MACHINE
    for cause in (None, raised):
        with pytest.raises(RunError) as caught:
            raise_sentence(raised, cause)
        assert failure_of(caught.value) is Failure.MACHINE
        assert classify(caught.value) == "cannot write"
    assert failure_of(Exception(f"I/O error: broken (os error {number})")) is Failure.MACHINE
    for words in ("disk I/O error", "database or disk is full", "attempt to write a readonly database"):
        assert failure_of(Exception(f"(sqlite3.OperationalError) {words} [SQL: INSERT]")) is Failure.MACHINE
    assert failure_of(OSError(errno.ENOENT, "no such file")) is None
    assert failure_of(RunError("training diverged")) is None


def raise_sentence(raised: OSError, cause: OSError | None) -> None:
    """As code that writes does."""
    try:
        raise raised
    except OSError:
        raise RunError("cannot write") from cause
