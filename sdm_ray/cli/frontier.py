"""`sdm-ray frontier`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

from sdm_ray.cli.progress import console, error_console, print_json
from sdm_ray.config import SweepSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.figures.frontier import frontier_figure
from sdm_ray.figures.kept import FIGURE as KEPT
from sdm_ray.figures.kept import kept_figure
from sdm_ray.figures.page import write_page
from sdm_ray.figures.tables import pareto_table
from sdm_ray.frontier.kept import kept_note
from sdm_ray.frontier.points import Point, compare, hypervolume
from sdm_ray.frontier.select import select
from sdm_ray.frontier.tables import frontier_document, read_extras, write_tables
from sdm_ray.sweep.records.comparable import data_digest, unlike
from sdm_ray.sweep.records.folder import begun_settings, find_sweep
from sdm_ray.sweep.records.points import sweep_points
from sdm_ray.tracking.address import PREFIX, is_reference

FIGURE, PAGE = "frontier.png", "frontier.html"
WIDE = 110
"""Characters of a terminal from which on the table has columns of the cost of training."""


def print_table(points: Sequence[Point]) -> None:
    """Print the Pareto table and its limits."""
    console.print(pareto_table(points, costs=console.width >= WIDE))
    note = kept_note(points)
    if note is not None:
        console.print(note, soft_wrap=True)


class _Sweep(NamedTuple):
    name: str
    folder: Path
    """Folder for its figures."""
    points: list[Point]
    settings: SweepSettings
    data: str | None = None
    """Digest of its data; None if it is unknown."""

    @property
    def measured(self) -> tuple[str, SweepSettings, str | None]:
        """Properties that must agree for a comparison."""
        return self.name, self.settings, self.data


def _read(sweep: str, tracking_uri: str | None) -> _Sweep:
    """Read a sweep from its folder, or (`mlflow:RUN_ID`) from its runs."""
    if not is_reference(sweep):
        folder = find_sweep(sweep)
        settings = begun_settings(folder)
        return _Sweep(folder.name, folder, sweep_points(folder), settings, data_digest(folder))
    from sdm_ray.sweep.records.tracked import tracked_sweep

    name, settings, points = tracked_sweep(sweep, uri=tracking_uri)
    return _Sweep(name, Path("runs") / f"{name}-{sweep.removeprefix(PREFIX)[:8]}", points, settings)


def show_frontier(
    sweep: str,
    others: Sequence[str] = (),
    tracking_uri: str | None = None,
    *,
    as_json: bool = False,
    force: bool = False,
) -> None:
    """Print the Pareto table of a sweep and redraw its figures; an empty frontier is an error with the reasons.

    The other sweeps are compared with it by hypervolume; sweeps measured differently are refused unless `force`.
    """
    mine = _read(sweep, tracking_uri)
    name, folder, points = mine.name, mine.folder, mine.points
    compared = [_read(other, tracking_uri) for other in others]
    differences = [unlike(mine.measured, theirs.measured) for theirs in compared]
    for theirs, found in zip(compared, differences, strict=True):
        if found and not force:
            raise UsageError(
                f"{name} and {theirs.name} were not measured alike, so neither hypervolume is better: "
                f"{'; '.join(found)}; run both alike, or add --force"
            )
    if as_json:
        pairs = zip(compared, differences, strict=True)
        comparisons = [_comparison(points, theirs, unalike)._asdict() for theirs, unalike in pairs]
        files = _draw(mine, is_run=is_reference(sweep))
        document = frontier_document(points, read_extras(folder))
        print_json({"sweep": name, **document, "comparisons": comparisons, "files": files})
        select(points)
        return
    print_table(points)
    files = _draw(mine, is_run=is_reference(sweep))
    select(points)
    for label, file in files.items():
        if file is not None:
            console.print(f"{label:8}{escape(str(file))}", soft_wrap=True)
    if compared:
        console.print(f"{escape(name)}: hypervolume {hypervolume(points):.4f}, {_num_trials(points)} trials")
    for theirs, unalike in zip(compared, differences, strict=True):
        compares = _comparison(points, theirs, unalike)
        console.print(
            f"{escape(theirs.name)}: hypervolume {compares.hypervolume:.4f}, {compares.num_trials} trials: "
            f"{compares.difference:+.4f} \\[{compares.low:+.4f}, {compares.high:+.4f}] ({compares.verdict}; "
            "95 % interval, bootstrap over trials)",
            soft_wrap=True,
        )
        for difference in unalike:
            console.print(f"  not alike: {escape(difference)}", soft_wrap=True)


def _draw(sweep: _Sweep, *, is_run: bool) -> dict[str, Path | None]:
    """Draw the figures and the page of a sweep; if it was read from its runs, write its table too.

    The result is None for figures that are not drawn: `kept` if nothing was measured for it, and all of them if the
    folder is not writable, which is printed.
    """
    folder, points = sweep.folder, sweep.points
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_run:
            write_tables(points, folder)
        frontier_figure(points, folder / FIGURE)
        shares = kept_figure(points, folder / KEPT)
        write_page(points, folder / PAGE, title=sweep.name, extras=read_extras(folder))
    except (RunError, OSError) as error:
        said = f"no picture is drawn: {error}"
        error_console.print(said, markup=False, soft_wrap=True)
        return {"picture": None, "kept": None, "page": None}
    return {"picture": folder / FIGURE, "kept": shares, "page": folder / PAGE}


class _Comparison(NamedTuple):
    sweep: str
    hypervolume: float
    num_trials: int
    difference: float
    """Hypervolume of the first sweep minus that of this one, with a 95 % interval."""
    low: float
    high: float
    verdict: str
    """Verdict about the first sweep."""
    not_alike: list[str]
    """Properties that differ, if the comparison was forced."""


def _comparison(points: Sequence[Point], other: _Sweep, not_alike: list[str]) -> _Comparison:
    theirs = other.points
    difference, low, high = compare(points, theirs)
    verdict = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
    return _Comparison(other.name, hypervolume(theirs), _num_trials(theirs), difference, low, high, verdict, not_alike)


def _num_trials(points: Sequence[Point]) -> int:
    return sum(not point.is_reference for point in points)
