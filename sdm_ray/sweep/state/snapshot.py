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
    stage: str = "starting"
    done: int = 0
    total: int = 0
    retries: int = 0
    last_error: str | None = None

    @property
    def share(self) -> float:
        """Share of the current stage that is done."""
        return self.done / self.total if self.total else 0.0


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
