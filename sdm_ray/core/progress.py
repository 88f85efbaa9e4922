"""Long work is a generator of progress; this runs one to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def run_through(work: Generator[Progress, None, T], on_progress: Callable[[Progress], None]) -> T:
    """Run `work` to its end, show `on_progress` every step on the way, and return what it returns."""
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
        on_progress(progress)


WAIT = "wait"
"""Stage of a process that waits for what another one computes; `done` counts seconds."""
_LABELS = {
    WAIT: "waiting for another process that computes the same",
    "rung": "attack at a rung",
    "scratch": "training from scratch",
    "distil": "distilling",
    "erase": "finding directions to erase",
}


def stage_label(stage: str) -> str:
    """A stage in the words that people are shown."""
    return _LABELS.get(stage, stage)


class Progress(NamedTuple):
    """What long work yields on its way, between two units that may be interrupted."""

    stage: str
    """`train` or `attack`."""
    done: int
    """Units of work done."""
    total: int
    """Units of work in all."""
    metrics: dict[str, float]
    """Metrics measured since the last one, by name; may be empty."""
