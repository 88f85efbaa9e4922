"""Where a sweep stands, from its folder alone: while it runs, after it, or after its driver was killed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdm_ray.config import load_settings
from sdm_ray.config.sweep import SweepSettings
from sdm_ray.core.lock import holder_of
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, hypervolume
from sdm_ray.sweep.records.folder import LOCK, SETTINGS
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.sweep.state.snapshot import Snapshot
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.view.live import clock, progress_counts, result_line


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """What a sweep's folder says."""

    folder: Path
    snapshot: Snapshot
    points: list[Point]
    unfinished: list[str]
    """Trials that began and have not ended."""
    num_missing: int
    """Trials that still have to run, begun or not."""
    failures: list[TrialResult]
    """Trials that failed, and those that failed a check of the audit."""
    holder: str | None
    """The process that runs it."""

    def lines(self) -> list[str]:
        """For people."""
        parts = [*progress_counts(self.snapshot), f"{clock(self.snapshot.elapsed_seconds)} in all"]
        if self.snapshot.front:
            parts.append(f"hypervolume {hypervolume(self.points):.4f}")
        lines = [f"sweep {self.snapshot.name}: {', '.join(parts)}"]
        if self.holder is not None:
            lines.append(f"running: {self.holder}, trials {', '.join(self.unfinished) or 'none'}")
        elif self.num_missing:
            lines.append(f"not running; {self.num_missing} trials are missing: --resume goes on")
        else:
            lines.append("complete")
        return lines + [result_line(result) for result in self.failures]


def read_status(folder: Path) -> SweepStatus:
    """Read a sweep's folder; a running driver is not disturbed.

    Raises:
        UsageError: when its settings cannot be read.
        RunError: when its ledger is damaged.
    """
    settings = load_settings(SweepSettings, folder / SETTINGS)
    state = SweepState(settings, read_record(folder))
    return SweepStatus(
        folder=folder,
        snapshot=state.snapshot(),
        points=state.judgement.points(),
        unfinished=[entry.trial_id for entry in state.unfinished()],
        num_missing=state.num_missing(),
        failures=[result for result in state.results() if result.status is Status.FAILED or result.failed_checks],
        holder=holder_of(folder / LOCK),
    )
