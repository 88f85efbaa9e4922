"""Live progress of one trial: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sdm_ray.cli.console import error_console
from sdm_ray.progress import run_through
from sdm_ray.types import Progress

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


def follow(work: Generator[Progress, None, T], subject: str = "") -> T:
    """Run a generator of progress to its end while showing where it is; returns what it returns.

    Args:
        work: the generator.
        subject: what is worked on, where a command works on several things.
    """
    return _bars(work, subject) if error_console.is_terminal else _lines(work, subject)


def _bars(work: Generator[Progress, None, T], subject: str) -> T:
    columns = (
        TextColumn("{task.description:6}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=error_console) as bars:

        def show(progress: Progress) -> None:
            task = tasks.get(progress.stage)
            if task is None:
                title = f"{progress.stage} {subject}"
                task = tasks[progress.stage] = bars.add_task(title, total=progress.total, metrics="")
            bars.update(task, completed=progress.done, total=progress.total)
            if progress.metrics:
                bars.update(task, metrics=_short(progress.metrics))

        return run_through(work, show)


def _lines(work: Generator[Progress, None, T], subject: str) -> T:
    last = 0.0

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or progress.done == progress.total:
            last = now
            parts = (progress.stage, subject, f"{progress.done}/{progress.total}", _short(progress.metrics))
            error_console.print(" ".join(part for part in parts if part), soft_wrap=True, markup=False)

    return run_through(work, show)


def _short(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name.rsplit('/', 1)[-1]} {value:.3g}" for name, value in list(metrics.items())[:5])
