"""Progress of long work, which is a generator, and a function that runs one to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def run_through(work: Generator[Progress, None, T], on_progress: Callable[[Progress], None]) -> T:
    """Run `work` to its end, call `on_progress` for every step, and return its result."""
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
        on_progress(progress)


WAIT = "wait"
"""Stage of a process that waits for another one's computation; `done` counts seconds."""
_LABELS = {
    WAIT: "waiting for another process that computes the same",
    "rung": "attack at a rung",
    "scratch": "training from scratch",
    "distil": "distilling",
    "erase": "finding directions to erase",
}


def stage_label(stage: str) -> str:
    """User-visible label of a stage."""
    return _LABELS.get(stage, stage)


class Progress(NamedTuple):
    """Progress report that long work yields between two units, the points where it may be interrupted."""

    stage: str
    """Stage of the work, such as `train`, `attack` or `wait`."""
    done: int
    """Completed units of work."""
    total: int
    """Total units of work."""
    metrics: dict[str, float]
    """Metrics measured since the previous one, by name; may be empty."""
