"""`sdm-ray status`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from sdm_ray.cli.frontier import print_table
from sdm_ray.cli.progress import console, print_json
from sdm_ray.core.errors import UsageError
from sdm_ray.sweep.records.folder import find_sweep
from sdm_ray.sweep.search.location import SETTINGS
from sdm_ray.sweep.view.status import Listed, list_sweeps, read_status

RUNS = Path("runs")


def show_status(sweep: str | None, *, as_json: bool = False) -> None:
    """Print the state of a sweep: progress, best points, running and failed trials.

    Without a sweep, or for a folder of sweeps, print a line for each of them.

    Raises:
        UsageError: when there is none.
    """
    folder = RUNS if sweep is None else Path(sweep)
    holds_sweeps = folder.is_dir() and not (folder / SETTINGS).exists() and any(folder.glob(f"*/{SETTINGS}"))
    if sweep is None and not holds_sweeps:
        raise UsageError(f"{RUNS} holds no sweep; run one (`sdm-ray sweep FILE`), or name a sweep's folder")
    if holds_sweeps:
        _show_all(list_sweeps(folder), as_json=as_json)
        return
    status = read_status(find_sweep(folder if sweep is None else sweep))
    if as_json:
        print_json(status.to_json())
        return
    for line in status.lines():
        console.print(escape(line), soft_wrap=True)
    if status.points:
        print_table(status.points)


def _show_all(listed: list[Listed], *, as_json: bool) -> None:
    if as_json:
        unread = {sweep.folder: {"folder": str(sweep.folder), "problem": sweep.problem} for sweep in listed}
        values = [unread[sweep.folder] if sweep.status is None else sweep.status.to_json() for sweep in listed]
        print_json({"sweeps": values})
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("sweep", "state", "trials", "references", "on the front", "last change"):
        table.add_column(heading, overflow="fold")
    for sweep in listed:
        changed = datetime.fromtimestamp(sweep.changed).strftime("%Y-%m-%d %H:%M")
        name = escape(sweep.folder.name)
        if sweep.status is None:
            table.add_row(name, "[red]cannot be read[/]", "", "", "", changed)
            continue
        snapshot = sweep.status.snapshot
        trials = f"{snapshot.num_done} of {snapshot.num_trials}"
        references = f"{snapshot.num_references_done} of {snapshot.num_references}"
        table.add_row(name, sweep.status.state, trials, references, str(len(snapshot.front)), changed)
    console.print(table)
