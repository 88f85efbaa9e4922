"""Points of a sweep as its folder has them: from its table, else from its ledger, as far as either can be read."""

from __future__ import annotations

from pathlib import Path

from sdm_ray.core.errors import DamagedError, RunError, UsageError
from sdm_ray.core.notices import notice
from sdm_ray.core.result import TrialResult, read_result
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import read_tables
from sdm_ray.sweep.records.folder import begun_settings
from sdm_ray.sweep.state.ledger import FILE, read_record, trial_folder
from sdm_ray.sweep.state.state import SweepState


def sweep_points(folder: Path) -> list[Point]:
    """The points of a sweep.

    A table that is missing or damaged is made up for by the ledger; lines of it that are damaged are left out. Either
    is said.

    Raises:
        UsageError: when there are none.
        RunError: when neither can be read.
    """
    try:
        return read_tables(folder)
    except (UsageError, RunError) as error:
        record = read_record(folder, around=True)
        points = SweepState(begun_settings(folder), record).judgement.points()
        if not points:
            raise
        notice(f"{error}; the points are from {folder / FILE}")
        for line in record.damaged:
            notice(left_out(line))
        return points


def left_out(line: str) -> str:
    """A sentence about a damaged line of the ledger, as `Record.damaged` has it."""
    return f"{FILE}, {line}, is damaged and left out; `sdm-ray sweep FILE --resume` makes up for it"


def trial_result(folder: Path, trial_id: str) -> TrialResult | None:
    """The result of a trial, from the ledger where its `result.json` is damaged; None where there is none.

    Raises:
        RunError: when a file cannot be read.
    """
    try:
        return read_result(trial_folder(folder, trial_id))
    except DamagedError:
        entry = read_record(folder, around=True).entries.get(trial_id)
        return None if entry is None else entry.result
