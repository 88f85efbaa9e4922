"""Snapshot of a sweep for views."""

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
        """Completed fraction of the current stage."""
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass
class Deaths:
    """Deaths of a trial's process."""

    count: int = 0
    reason: str | None = None
    """Latest known reason."""
    hung: bool = False
    """Whether the process ended itself the last time because it made no progress."""
    dump: int | None = None
    """Modification time of the stack trace (`hang.txt`) found at the latest death; None without one."""

    def __str__(self) -> str:
        return "its process died" if self.count <= 1 else f"its process died {times(self.count)}"


def times(count: int) -> str:
    """Format a number of times as a word."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


@dataclass(frozen=True)
class Snapshot:
    """Data that a view shows."""

    name: str
    num_trials: int
    """Total number of searched trials."""
    num_references: int
    """Total number of trials of references and variants: one for each training seed."""
    num_references_done: int
    counts: dict[Status, int]
    """Number of searched points that have ended, by status."""
    references: tuple[TrialResult, ...]
    running: tuple[Running, ...]
    front: tuple[Point, ...]
    elapsed_seconds: float
    seconds_left: float | None
    """Expected remaining time; None until a trial has finished."""
    trials_per_hour: float | None = None
    """Rate of trials that ended under this driver, including references; None before the first."""

    @property
    def num_done(self) -> int:
        """Number of searched points that have ended, with any status."""
        return sum(self.counts.values())
