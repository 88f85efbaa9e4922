"""Reads the points of a sweep from its folder: from the table or, if that cannot be read, from the ledger."""

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
    """Load the points of a sweep.

    If the table is missing or damaged, the points are computed from the ledger, without its damaged lines. Both cases
    are reported with `notice`.

    Raises:
        UsageError: if there are none.
        RunError: if neither can be read.
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
    """Message about a damaged line of the ledger, given as in `Record.damaged`."""
    return f"{FILE}, {line}, is damaged and left out; `sdm-ray sweep FILE --resume` makes up for it"


def trial_result(folder: Path, trial_id: str) -> TrialResult | None:
    """Load the result of a trial, from the ledger if its `result.json` is damaged; None if there is none.

    Raises:
        RunError: if a file cannot be read.
    """
    try:
        return read_result(trial_folder(folder, trial_id))
    except DamagedError:
        entry = read_record(folder, around=True).entries.get(trial_id)
        return None if entry is None else entry.result
