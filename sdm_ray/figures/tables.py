"""The frontier as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.curves import cell_numbers
from sdm_ray.figures.style import LABELS
from sdm_ray.frontier.points import Point, pareto_front


def pareto_table(points: Sequence[Point]) -> Table:
    """The front by falling desired accuracy, then the references, for a terminal."""
    front = pareto_front(points)[::-1]
    references = sorted((point for point in points if point.is_reference), key=lambda point: -point.desired)
    numbers = cell_numbers([*front, *references])
    num_trials = sum(not point.is_reference for point in points)
    caption = f"{num_trials} trials, {len(front)} on the front; harmful: worst case over the attack, lower is better"
    table = Table(
        title="Pareto frontier", caption=caption, box=None, pad_edge=False, title_justify="left", caption_justify="left"
    )
    for index, name in enumerate(["trial", "method", "desired", "harmful", *(f"n={number}" for number in numbers)]):
        table.add_column(
            name, justify="left" if index < 2 else "right", overflow="fold", style="bold" if index == 0 else ""
        )
    for point in front:
        table.add_row(*_row(point, numbers))
    table.add_section()
    for point in references:
        table.add_row(*_row(point, numbers), style="dim")
    return table


def _row(point: Point, numbers: Sequence[int]) -> list[str]:
    by_number = [point.metrics.get(Metric.harmful_accuracy(number), math.nan) for number in numbers]
    values = [point.desired, point.harmful, *by_number]
    return [point.trial_id, LABELS.get(point.method, point.method), *map(_number, values)]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
