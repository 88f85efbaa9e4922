"""The outcome of a sweep, as `run_sweep` returns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, pareto_front
from sdm_ray.sweep.records.folder import RESUME_HINT


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """What a sweep leaves behind."""

    folder: Path
    """Holds `sweep.yaml`, `trials.jsonl`, `trials/`, the frontier's files and the logs."""
    results: list[TrialResult]
    """Every trial that ended, references first; `infeasible` where it misses the bound on desired accuracy."""
    points: list[Point]
    """Those that completed."""
    infeasible: dict[str, str] = field(default_factory=dict)
    """Why completed points miss a constraint, by id."""
    infrastructure: dict[str, str] = field(default_factory=dict)
    """Why trials were left out that were ended from outside too often, by id."""
    interrupted: bool = False
    """Trials are still missing; `resume_hint` says how to go on."""
    tracking_hint: str = ""
    """How to open the tracker's user interface."""
    seconds: float = 0.0
    """Wall-clock seconds of this run."""

    @property
    def front(self) -> list[Point]:
        """The Pareto front, by rising desired accuracy."""
        return pareto_front(self.points)

    @property
    def failures(self) -> list[TrialResult]:
        """Trials that failed, with their reasons."""
        return [result for result in self.results if result.status is Status.FAILED]

    @property
    def resume_hint(self) -> str:
        """What to say after an interruption."""
        return RESUME_HINT
