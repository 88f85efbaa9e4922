"""Status of a sweep, from its folder only: while it runs, after it has ended, or after its driver was killed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.lock import holder_of
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, hypervolume
from sdm_ray.sweep.records.folder import LOCK, begun_settings
from sdm_ray.sweep.records.points import left_out
from sdm_ray.sweep.search.location import SETTINGS
from sdm_ray.sweep.state.ledger import FILE as LEDGER
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.sweep.state.snapshot import Snapshot
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.view.live import clock, progress_counts, result_line


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """Status of a sweep."""

    folder: Path
    snapshot: Snapshot
    points: list[Point]
    unfinished: list[str]
    """Ids of trials that have begun and still have to end."""
    num_missing: int
    """Number of trials that still have to run, whether they have begun or not."""
    failures: list[TrialResult]
    """Results of trials that failed, or that failed a check of the audit."""
    infrastructure: dict[str, str]
    """Reasons for the deaths of trials that are excluded after too many external kills, by id."""
    damaged: list[str]
    """Ledger lines that cannot be read and are skipped, each with the reason."""
    holder: str | None
    """Description of the process that runs the sweep; None if none does."""

    @property
    def state(self) -> str:
        """`running`, `interrupted` (trials are missing and no driver runs) or `complete`."""
        return "running" if self.holder is not None else "interrupted" if self.num_missing else "complete"

    def to_json(self) -> dict[str, Any]:
        """Status as plain values for programs; accuracies that were not measured are NaN."""
        snapshot = self.snapshot
        return {
            "sweep": snapshot.name,
            "folder": str(self.folder),
            "state": self.state,
            "runner": self.holder,
            "num_trials": snapshot.num_trials,
            "num_done": snapshot.num_done,
            "counts": {str(status): count for status, count in snapshot.counts.items()},
            "num_references": snapshot.num_references,
            "num_references_done": snapshot.num_references_done,
            "num_missing": self.num_missing,
            "unfinished": self.unfinished,
            "elapsed_seconds": snapshot.elapsed_seconds,
            "hypervolume": hypervolume(self.points),
            "front": [
                {"trial_id": point.trial_id, "desired": point.desired, "harmful": point.harmful, "params": point.params}
                for point in snapshot.front
            ],
            "failures": [{"trial_id": result.trial_id, "reason": result.error} for result in self.failures],
            "infrastructure": [
                {"trial_id": trial_id, "reason": reason} for trial_id, reason in self.infrastructure.items()
            ],
            "damaged_lines": self.damaged,
        }

    def lines(self) -> list[str]:
        """Status as lines of text for the user."""
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
        lines += [result_line(result) for result in self.failures]
        lines += [
            f"{trial_id} infrastructure: {reason}; it is left out, --resume --retry-infrastructure repeats it"
            for trial_id, reason in self.infrastructure.items()
        ]
        return lines + [f"warning: {left_out(line)}" for line in self.damaged]


class Listed(NamedTuple):
    """An entry in a list of sweeps."""

    folder: Path
    changed: float
    """Modification time of the ledger, in seconds since 1970; of the settings file if there is no ledger."""
    status: SweepStatus | None
    problem: str = ""
    """Error message if the status cannot be read."""


def list_sweeps(folder: Path) -> list[Listed]:
    """All sweeps in a folder, the latest change first; sweeps that cannot be read are listed with the reason."""
    found = []
    for file in folder.glob(f"*/{SETTINGS}"):
        ledger = file.parent / LEDGER
        changed = (ledger if ledger.exists() else file).stat().st_mtime
        try:
            found.append(Listed(file.parent, changed, read_status(file.parent)))
        except (UsageError, RunError) as error:
            found.append(Listed(file.parent, changed, None, str(error)))
    return sorted(found, key=lambda listed: (-listed.changed, listed.folder))


def read_status(folder: Path) -> SweepStatus:
    """Read the status from a sweep's folder, without affecting a running driver.

    Raises:
        UsageError: if the settings cannot be read.
        RunError: if the ledger cannot be read; damaged lines are skipped and listed.
    """
    settings = begun_settings(folder)
    record = read_record(folder, around=True)
    state = SweepState(settings, record)
    return SweepStatus(
        folder=folder,
        snapshot=state.snapshot(),
        points=state.judgement.points(),
        unfinished=[entry.trial_id for entry in state.unfinished()],
        num_missing=state.num_missing(),
        failures=[result for result in state.results() if result.status is Status.FAILED or result.failed_checks],
        infrastructure={entry.trial_id: entry.killed for entry in state.infrastructure()},
        damaged=record.damaged,
        holder=holder_of(folder / LOCK),
    )
