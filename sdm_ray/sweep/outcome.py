"""Return value of `run_sweep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, pareto_front
from sdm_ray.sweep.records.folder import RESUME_HINT


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """Outcome of a sweep."""

    folder: Path
    """Folder with `sweep.yaml`, `trials.jsonl`, `trials/`, the frontier's files and the logs."""
    results: list[TrialResult]
    """Results of all ended trials, references first; status `infeasible` if a constraint is violated."""
    points: list[Point]
    """Points that completed."""
    infeasible: dict[str, str] = field(default_factory=dict)
    """Reasons why searched points are infeasible, by id."""
    infrastructure: dict[str, str] = field(default_factory=dict)
    """Reasons for the deaths of trials that are excluded after too many external kills, by id."""
    interrupted: bool = False
    """Whether the sweep was stopped before all trials ended; `resume_hint` says how to continue."""
    tracking_hint: str = ""
    """How to open the tracker's user interface."""
    seconds: float = 0.0
    """Wall-clock seconds of the sweep, including earlier drivers."""

    @property
    def front(self) -> list[Point]:
        """Pareto front, by increasing desired accuracy."""
        return pareto_front(self.points)

    @property
    def failures(self) -> list[TrialResult]:
        """Trials that failed, with their reasons."""
        return [result for result in self.results if result.status is Status.FAILED]

    @property
    def resume_hint(self) -> str:
        """Message that says how to resume an interrupted sweep."""
        return RESUME_HINT
