"""Views of a running sweep: a live table in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import WAIT, stage_label
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, hypervolume
from sdm_ray.sweep.state.judgement import failed_checks
from sdm_ray.sweep.state.snapshot import Running, Snapshot, times

REFRESH_SECONDS = 0.5
LINE_SECONDS = 10.0
"""Interval of progress lines in plain output, in addition to a line for each trial that ends."""
MAX_FRONT = 8
"""Maximum number of points on the front in the table."""
MAX_RUNNING = 4
"""Maximum number of running trials in plain output, one line each."""


class View(Protocol):
    """Interface of views; every call returns fast."""

    def start(self, title: str) -> None:
        """Show that the sweep begins."""

    def update(self, snapshot: Callable[[], Snapshot]) -> None:
        """Show progress; called often, so a view should call `snapshot` only when it draws."""

    def finished(self, result: TrialResult, snapshot: Snapshot) -> None:
        """Show that a trial has ended."""

    def message(self, text: str) -> None:
        """Show an important message."""

    def close(self) -> None:
        """Stop the output at the end of the sweep, and restore the terminal."""


class SilentView:
    """View without output, which stores messages and results."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.ended: list[TrialResult] = []

    def start(self, title: str) -> None:
        """Do nothing."""

    def update(self, snapshot: Callable[[], Snapshot]) -> None:
        """Do nothing."""

    def finished(self, result: TrialResult, snapshot: Snapshot) -> None:
        """Store the result."""
        self.ended.append(result)

    def message(self, text: str) -> None:
        """Store the message."""
        self.messages.append(text)

    def close(self) -> None:
        """Do nothing."""


class LinesView:
    """View that writes plain lines, for logs and pipes."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._write = write or (lambda line: print(line, flush=True))
        self._last = time.monotonic()

    def start(self, title: str) -> None:
        """Write the title."""
        self._write(title)

    def update(self, snapshot: Callable[[], Snapshot]) -> None:
        """Write progress every `LINE_SECONDS`."""
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            now = snapshot()
            self._write(progress_line(now))
            for running in now.running[:MAX_RUNNING]:
                self._write(f"  {running_line(running)}")

    def finished(self, result: TrialResult, snapshot: Snapshot) -> None:
        """Write a line for the trial."""
        self._write(f"{result_line(result)} | {progress_line(snapshot)}")

    def message(self, text: str) -> None:
        """Write the message."""
        self._write(text)

    def close(self) -> None:
        """Do nothing."""


class LiveView:
    """View with a table in the terminal, redrawn in place; messages are printed above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._last = 0.0

    def start(self, title: str) -> None:
        """Start the live display at the bottom of the terminal."""
        self._live.start()
        self._live.update(Text(f"{title}; starting"), refresh=True)

    def update(self, snapshot: Callable[[], Snapshot]) -> None:
        """Redraw at most twice a second."""
        if time.monotonic() - self._last >= REFRESH_SECONDS:
            self._draw(snapshot())

    def finished(self, result: TrialResult, snapshot: Snapshot) -> None:
        """Redraw, and print a line for a failure or failed audit checks, which the table only counts."""
        if result.status is Status.FAILED or result.failed_checks:
            self.message(result_line(result))
        self._draw(snapshot)

    def message(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(Text(text))

    def close(self) -> None:
        """Stop the live display."""
        self._live.stop()

    def _draw(self, snapshot: Snapshot) -> None:
        self._last = time.monotonic()
        self._live.update(render(snapshot), refresh=True)


def default_view() -> View:
    """`LiveView` in a terminal, otherwise `LinesView`."""
    return LiveView() if sys.stdout.isatty() else LinesView()


def render(snapshot: Snapshot) -> RenderableType:
    """Render the live table: a line of counts, the references, the best points, and the running trials."""
    parts: list[RenderableType] = [Text(progress_line(snapshot), style="bold")]
    points = _points_table(snapshot)
    if points.row_count:
        parts.append(points)
    parts += [
        Text(running_line(running), style="dim", overflow="ellipsis", no_wrap=True) for running in snapshot.running
    ]
    return Group(*parts)


def progress_line(snapshot: Snapshot) -> str:
    """Format counts, remaining time and the best point in one line."""
    parts = progress_counts(snapshot)
    parts.insert(1, f"{len(snapshot.running)} running")
    left = snapshot.seconds_left
    if snapshot.trials_per_hour is not None:
        parts.append(f"{snapshot.trials_per_hour:.3g} trials/h")
    parts.append(
        f"{clock(snapshot.elapsed_seconds)} elapsed" + (f", about {clock(left)} left" if left is not None else "")
    )
    if snapshot.front:
        best = min(snapshot.front, key=lambda point: point.harmful)
        parts.append(f"best {best.trial_id}: desired {best.desired:.3f}, harmful {best.harmful:.3f}")
        parts.append(f"hypervolume {hypervolume(snapshot.front):.4f}")
    return ", ".join(parts)


def progress_counts(snapshot: Snapshot) -> list[str]:
    """Phrases with the numbers of ended points by status, and of ended trials of references."""
    ended = (Status.FAILED, Status.INFEASIBLE, Status.STOPPED)
    referred = f"{snapshot.num_references_done}/{snapshot.num_references}"
    if not snapshot.num_trials:
        return [f"{referred} models"]
    parts = [f"{snapshot.num_done}/{snapshot.num_trials} trials"]
    parts += [f"{snapshot.counts[status]} {status}" for status in ended if snapshot.counts.get(status)]
    if snapshot.num_references_done < snapshot.num_references:
        parts.append(f"references {referred}")
    return parts


def result_line(result: TrialResult) -> str:
    """Format a trial's result in one line."""
    name = result.trial_id
    if not _names_method(name, result.method):
        name += f" ({result.method})"
    if result.status in (Status.FAILED, Status.STOPPED) or result.error is not None:
        return f"{name} {result.status}: {result.error}"
    desired = result.metrics.get(Metric.DESIRED_ACCURACY, float("nan"))
    harmful = result.metrics.get(Metric.HARMFUL_WORST_ACCURACY, float("nan"))
    note = " infeasible" if result.status is Status.INFEASIBLE else ""
    checks = f"; audit, {failed_checks(result)}" if result.failed_checks else ""
    return f"{name}{note} desired {desired:.3f}, harmful {harmful:.3f}{checks}"


def running_line(running: Running) -> str:
    """Format a running trial's stage and progress in one line."""
    entry, share = running.entry, ""
    if running.total and running.stage != WAIT:  # the length of a wait is unknown
        share = f" {running.share:.0%}"
    retries = f", started {times(running.retries + 1)}" if running.retries else ""
    name = entry.trial_id if _names_method(entry.trial_id, entry.method) else f"{entry.trial_id} {entry.method}"
    return f"{name}: {stage_label(running.stage)}{share}{retries}"


def _names_method(trial_id: str, method: str) -> bool:
    """Whether a trial's id already contains its method: `tuned`, `tuned-s1`."""
    return trial_id == method or trial_id.startswith(f"{method}-")


def clock(seconds: float) -> str:
    """Format seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _points_table(snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", overflow="ellipsis", no_wrap=True, min_width=5)
    table.add_column("method", overflow="ellipsis", no_wrap=True)
    table.add_column("desired", justify="right", no_wrap=True)
    table.add_column("harmful", justify="right", no_wrap=True)
    for result in snapshot.references:
        if result.status is Status.COMPLETE:
            desired, harmful = (
                result.metrics.get(name, float("nan"))
                for name in (Metric.DESIRED_ACCURACY, Metric.HARMFUL_WORST_ACCURACY)
            )
            table.add_row(escape(result.trial_id), "reference", f"{desired:.3f}", f"{harmful:.3f}", style="dim")
    for point in _shown(snapshot.front):
        table.add_row(
            escape(point.trial_id), escape(point.method), f"{point.desired:.3f}", f"{point.harmful:.3f}", style="green"
        )
    return table


def _shown(front: tuple[Point, ...]) -> list[Point]:
    return sorted(front, key=lambda point: point.harmful)[:MAX_FRONT]
