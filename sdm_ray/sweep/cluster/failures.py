"""Failures of trials: what kind one is, and how people are told."""

from __future__ import annotations

import traceback
from enum import StrEnum
from pathlib import Path

from sdm_ray.core.errors import RunError, UsageError, machine_fault


class Failure(StrEnum):
    """Kinds of failure after which a trial runs again: at once with more memory, or with the sweep's next driver."""

    MACHINE = "fault of the machine"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_GPU_MEMORY = "out of GPU memory"


def classify(error: BaseException) -> str:
    """One line for people: what kind of failure, and its own words."""
    message = " ".join(str(error).split())[:300]
    if isinstance(error, UsageError | RunError):
        return message
    name, failure = type(error).__name__, failure_of(error)
    if failure is Failure.MACHINE:
        return str(machine_fault(error))
    if failure is Failure.OUT_OF_MEMORY:
        return f"{failure}: lower the batch sizes, or raise cpus_per_trial so that fewer trials run at once"
    if failure is Failure.OUT_OF_GPU_MEMORY:
        return f"{failure}: {message}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{name}: {message}{where}" if message else f"{name}{where}"


def failure_of(error: BaseException) -> Failure | None:
    """The kind of a failure; None for one that is only reported."""
    if isinstance(error, MemoryError):
        return Failure.OUT_OF_MEMORY
    if type(error).__name__ in ("OutOfMemoryError", "CudaOutOfMemoryError"):
        return Failure.OUT_OF_GPU_MEMORY
    return None if machine_fault(error) is None else Failure.MACHINE


def is_device_fault(error: BaseException) -> bool:
    """Whether an accelerator is left unusable for this process (an illegal access, a failed assertion on it)."""
    return type(error).__name__ == "AcceleratorError"
