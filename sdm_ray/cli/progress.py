"""Live progress of one trial: a progress bar on a terminal, otherwise plain lines at intervals."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from sdm_ray.core.files import null_for_nan
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import WAIT, Progress, run_through, stage_label

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0
IMPORTING = "importing torch and transformers"
READING = "reading data and encoder; texts are tokenised unless the cache has them"
"""Message before the first step."""
LINE_WIDTH = 100
"""Columns for the text of a training line; the bar gets the rest of the terminal's width."""
NO_TERMS = (
    "step", "desired_loss", "desired_accuracy", "adversary_loss_first", "adversary_loss_last",
    "adversary_accuracy_first", "adversary_accuracy_last", "adversary_learning_rate", "pool_loss", "pool_accuracy",
    "gradient_norm", "steps_per_second", "texts_per_second", "seconds_left",
)  # fmt: skip
"""Metrics under `train/` that are not blocking terms."""


class LeftColumn(ProgressColumn):
    """Time left as reported by the work, which knows what was done before a resume; otherwise the bar's estimate."""

    def __init__(self) -> None:
        super().__init__()
        self._guess = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn`."""
        left = task.fields["left"]
        return self._guess.render(task) if left is None else Text(clock(left), style="progress.remaining")


def follow(work: Generator[Progress, None, T], subject: str = "") -> T:
    """Run a generator of progress to its end, show the progress, and return its value.

    Args:
        work: the generator.
        subject: name of the item, for commands that process several.
    """
    return _bars(work, subject) if error_console.is_terminal else _lines(work, subject)


def say(text: str) -> None:
    """Print a line on standard error about a step that takes seconds."""
    error_console.print(text, markup=False, soft_wrap=True)


def words(stage: str, metrics: Mapping[str, float]) -> str:
    """Short text of metrics: of training the most important first, otherwise the first five by name."""
    if stage not in ("train", "distil"):
        return "  ".join(f"{name.rsplit('/', 1)[-1]} {value:.3g}" for name, value in list(metrics.items())[:5])
    parts = [*_loss_words(metrics), *_accuracy_words(metrics)]
    if Metric.TRAIN_SPEED in metrics:
        speed = metrics[Metric.TRAIN_SPEED]
        parts.append(f"{speed:.0f}/s" if speed >= 10 else f"{speed:.2g}/s")
    if Metric.COST_MEMORY_BYTES in metrics:
        parts.append(f"{metrics[Metric.COST_MEMORY_BYTES] / 2**30:.1f} G")
    return "  ".join(parts)


def print_json(values: Mapping[str, Any]) -> None:
    """Print values as JSON on stdout, with null for NaN."""
    console.file.write(json.dumps(null_for_nan(dict(values)), indent=1, default=str, allow_nan=False) + "\n")


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _loss_words(metrics: Mapping[str, float]) -> list[str]:
    """The desired loss with its accuracy, then each blocking term by its short name."""
    parts = []
    if "train/desired_loss" in metrics:
        accuracy = f" {metrics['train/desired_accuracy']:.0%}" if "train/desired_accuracy" in metrics else ""
        parts.append(f"desired {_number(metrics['train/desired_loss'])}{accuracy}")
    names = [name.removeprefix("train/") for name in metrics if name.startswith("train/")]
    for name in names:
        if name not in NO_TERMS:
            short = name.removeprefix("harmful_adapted_").removeprefix("harmful_").replace("_", " ")
            parts.append(f"{short} {_number(metrics[f'train/{name}'])}")
    return parts


def _accuracy_words(metrics: Mapping[str, float]) -> list[str]:
    """Harmful accuracy of simulated adversaries, and held-out desired accuracy."""
    parts = []
    first, last = (metrics.get(f"train/adversary_accuracy_{end}") for end in ("first", "last"))
    if first is not None and last is not None:
        parts.append(f"harmful {100 * first:.0f}→{last:.0%}")
    if "train/pool_accuracy" in metrics:
        parts.append(f"pool {metrics['train/pool_accuracy']:.0%}")
    if Metric.VALIDATION_ACCURACY in metrics:
        parts.append(f"val {metrics[Metric.VALIDATION_ACCURACY]:.1%}")
    return parts


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def _bars(work: Generator[Progress, None, T], subject: str) -> T:
    spare = error_console.width - LINE_WIDTH
    columns = (
        TextColumn("{task.description}"),
        *([BarColumn(bar_width=min(24, spare))] if spare >= 4 else []),
        MofNCompleteColumn(),
        LeftColumn(),
        TextColumn("{task.fields[words]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    tasks: dict[str, Any] = {}
    known: dict[str, dict[str, float]] = {}
    with Bars(*columns, console=error_console, expand=True) as bars:

        def show(progress: Progress) -> None:
            stage = progress.stage
            total = None if stage == WAIT else progress.total  # the length of a wait is unknown
            if stage not in tasks:
                title = stage_label(stage) if stage == subject else f"{stage_label(stage)} {subject}".strip()
                tasks[stage], known[stage] = bars.add_task(title, total=total, words="", left=None), {}
            known[stage] |= progress.metrics
            bars.update(
                tasks[stage],
                completed=progress.done,
                total=total,
                words=words(stage, known[stage]),
                left=known[stage].get(Metric.TRAIN_SECONDS_LEFT),
            )

        return run_through(work, show)


def _lines(work: Generator[Progress, None, T], subject: str) -> T:
    last = 0.0
    known: dict[str, dict[str, float]] = {}

    def show(progress: Progress) -> None:
        nonlocal last
        now, metrics = time.monotonic(), known.setdefault(progress.stage, {})
        metrics |= progress.metrics
        if now - last >= SECONDS_BETWEEN_LINES or progress.done == progress.total:
            last = now
            left = metrics.get(Metric.TRAIN_SECONDS_LEFT)
            parts = (
                stage_label(progress.stage),
                "" if subject == progress.stage else subject,
                f"{progress.done} s" if progress.stage == WAIT else f"{progress.done}/{progress.total}",
                "" if left is None else f"{clock(left)} left",
                words(progress.stage, metrics),
            )
            error_console.print(" ".join(part for part in parts if part), soft_wrap=True, markup=False)

    return run_through(work, show)


console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)
