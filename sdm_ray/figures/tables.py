"""The frontier as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.curves import cell_numbers
from sdm_ray.figures.style import WORDS
from sdm_ray.frontier.points import Point, pareto_front


def pareto_table(points: Sequence[Point]) -> Table:
    """The front by falling desired accuracy, then the references, for a terminal."""
    header, front, references = _rows(points)
    num_trials = sum(not point.is_reference for point in points)
    caption = f"{num_trials} trials, {len(front)} on the front; harmful: worst case over the attack, lower is better"
    table = Table(
        title="Pareto frontier", caption=caption, box=None, pad_edge=False, title_justify="left", caption_justify="left"
    )
    for index, name in enumerate(header):
        table.add_column(
            name, justify="left" if index < 2 else "right", overflow="fold", style="bold" if index == 0 else ""
        )
    for row in front:
        table.add_row(*row)
    table.add_section()
    for row in references:
        table.add_row(*row, style="dim")
    return table


def to_markdown(points: Sequence[Point]) -> str:
    """The same table in Markdown."""
    header, front, references = _rows(points)
    rule = ["---" if index < 2 else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *front, *references]) + "\n"


def _rows(points: Sequence[Point]) -> tuple[list[str], list[list[str]], list[list[str]]]:
    front = pareto_front(points)[::-1]
    references = sorted((point for point in points if point.is_reference), key=lambda point: -point.desired)
    numbers = cell_numbers([*front, *references])

    def row(point: Point) -> list[str]:
        values = [
            point.desired,
            point.harmful,
            *(point.metrics.get(Metric.harmful_accuracy(n), math.nan) for n in numbers),
        ]
        return [point.trial_id, WORDS.get(point.method, point.method), *(_number(value) for value in values)]

    header = ["trial", "method", "desired", "harmful", *(f"n={number}" for number in numbers)]
    return header, [row(point) for point in front], [row(point) for point in references]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
