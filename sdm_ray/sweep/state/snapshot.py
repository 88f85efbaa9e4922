"""A sweep at one moment, for views to show."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point
from sdm_ray.sweep.state.ledger import Entry


@dataclass
class Running:
    """A trial that occupies a process."""

    entry: Entry
    started: float = field(default_factory=time.monotonic)
    stage: str = "starting (its process imports, reads data and encoder)"
    done: int = 0
    total: int = 0
    retries: int = 0

    @property
    def share(self) -> float:
        """Share of the current stage that is done."""
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass
class Deaths:
    """How often the process of a trial died."""

    count: int = 0
    reason: str | None = None
    """Why, the last time that it was known."""
    hung: bool = False
    """The last time it ended itself, because it made no progress."""
    dump: int | None = None
    """When the last account of a hang was written that has been seen."""

    def __str__(self) -> str:
        return "its process died" if self.count <= 1 else f"its process died {times(self.count)}"


def times(count: int) -> str:
    """A number of times in words."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


@dataclass(frozen=True)
class Snapshot:
    """What a view shows."""

    name: str
    num_trials: int
    """Searched trials in all."""
    num_references: int
    """Trials of references and variants in all: one for each training seed."""
    num_references_done: int
    counts: dict[Status, int]
    """Searched trials that ended, by status."""
    references: tuple[TrialResult, ...]
    running: tuple[Running, ...]
    front: tuple[Point, ...]
    elapsed_seconds: float
    seconds_left: float | None
    """None until a trial has finished."""
    trials_per_hour: float | None = None
    """Trials that ended under this driver, references included; None before the first."""

    @property
    def num_done(self) -> int:
        """Searched trials that ended, whatever their status."""
        return sum(self.counts.values())
