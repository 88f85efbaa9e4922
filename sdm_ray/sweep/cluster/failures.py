"""Classifies failures of trials and formats them for users."""

from __future__ import annotations

import traceback
from enum import StrEnum
from pathlib import Path

from sdm_ray.core.errors import RunError, UsageError, machine_fault


class Failure(StrEnum):
    """Failures after which a trial is rerun: at once with more memory, or when the sweep is resumed."""

    MACHINE = "fault of the machine"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_GPU_MEMORY = "out of GPU memory"


def classify(error: BaseException) -> str:
    """Describe a failure in one line: its kind and its message."""
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
    """Kind of a failure; None if the trial is not to be rerun."""
    if isinstance(error, MemoryError):
        return Failure.OUT_OF_MEMORY
    if type(error).__name__ in ("OutOfMemoryError", "CudaOutOfMemoryError"):
        return Failure.OUT_OF_GPU_MEMORY
    return None if machine_fault(error) is None else Failure.MACHINE


def is_device_fault(error: BaseException) -> bool:
    """Whether the process can no longer use its accelerator (after an illegal access or a device-side assertion)."""
    return type(error).__name__ == "AcceleratorError"
