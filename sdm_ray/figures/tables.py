"""The frontier as a table, for terminals and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from sdm_ray.core.markup import one_line
from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.curves import cell_numbers
from sdm_ray.figures.style import LABELS
from sdm_ray.frontier.kept import good_metric
from sdm_ray.frontier.points import Point, interval_of, pareto_front

MAX_HELD_BACK = 8
"""Most rows of points held back by the audit; the caption gives their total."""
COST_NAMES = {
    Metric.COST_TRAIN_SECONDS: "train s", Metric.COST_TRAIN_TEXTS: "texts", Metric.COST_TRAIN_FLOPS: "FLOPs",
}  # fmt: skip
SUFFIXES = ("", "k", "M", "G", "T", "P", "E")
KEPT_NAMES = {Metric.KEPT_BENIGN: "kept benign", Metric.KEPT_DESIRED: "kept desired"}


def pareto_table(points: Sequence[Point], *, costs: bool = True) -> Table:
    """Table for terminals: the front (by descending desired accuracy), points held back by the audit, references.

    Args:
        points: all points.
        costs: whether to add columns of the cost of training.
    """
    front = pareto_front(points)[::-1]
    held = sorted((point for point in points if point.held_back), key=lambda point: -point.desired)[:MAX_HELD_BACK]
    references = sorted((point for point in points if point.is_reference), key=lambda point: -point.desired)
    numbers = cell_numbers([*front, *held, *references])
    shown = _kept_columns([*front, *held, *references])
    paid = _cost_columns([*front, *held, *references]) if costs else {}
    num_trials = sum(not point.is_reference for point in points)
    num_held = sum(point.held_back for point in points)
    back = f", {num_held} held back by the audit" if num_held else ""
    caption = (
        f"{num_trials} trials, {len(front)} on the front{back}; harmful: worst case over the attack, lower is better"
    )
    table = Table(
        title="Pareto frontier", caption=caption, box=None, pad_edge=False, title_justify="left",
        caption_justify="left", collapse_padding=bool(shown),
    )  # fmt: skip
    names = _names(shown, numbers, paid)
    for index, name in enumerate(names):
        table.add_column(
            name,
            justify="left" if index < 2 else "right",
            overflow="fold",
            style="bold" if index == 0 else "",
            min_width=7 if name == "kept harmful" else None,
        )
    for point in front:
        table.add_row(*_plain(point, numbers, list(shown), list(paid)))
    for point in held:
        trial, method, *values = _plain(point, numbers, list(shown), list(paid))
        table.add_row(trial, f"{method} (held back by the audit)", *values, style="yellow")
    table.add_section()
    for point in references:
        table.add_row(*_plain(point, numbers, list(shown), list(paid)), style="dim")
    return table


def _plain(point: Point, numbers: Sequence[int], shares: Sequence[str], costs: Sequence[str]) -> list[str]:
    """Row for a terminal, unparsed: rich would interpret `[red]` in a name as a colour."""
    return [escape(one_line(cell)) for cell in _row(point, numbers, shares, costs)]


def markdown_table(points: Sequence[Point], *, max_characters: int) -> str:
    """The same table in Markdown; surplus rows of the front are left out, lowest desired accuracies first."""
    front = pareto_front(points)[::-1]
    references = sorted((point for point in points if point.is_reference), key=lambda point: -point.desired)
    numbers = cell_numbers([*front, *references])
    shown, paid = _kept_columns([*front, *references]), _cost_columns([*front, *references])
    names = _names(shown, numbers, paid)
    head = [_markdown_row(names), _markdown_row(["---", "---", *["---:"] * (len(names) - 2)])]
    rows = [_markdown_row(_row(point, numbers, list(shown), list(paid))) for point in front]
    ends = [_markdown_row(_row(point, numbers, list(shown), list(paid))) for point in references]
    note = f"\n\n{len(rows)} on the front; the rest is in `frontier.json`."
    room = max_characters - len(note) - sum(len(line) + 1 for line in [*head, *ends])
    kept: list[str] = []
    for row in rows:
        room -= len(row) + 1
        if room < 0:
            break
        kept.append(row)
    return "\n".join([*head, *kept, *ends]) + (note if len(kept) < len(rows) else "")


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(one_line(cell).replace('|', '/') for cell in cells)} |"


def _kept_columns(points: Sequence[Point]) -> dict[str, str]:
    """Column names by metric: head starts kept, if any point has them."""
    good = good_metric(points)
    columns = {str(good): KEPT_NAMES[good], str(Metric.KEPT_HARMFUL): "kept harmful"}
    return {name: column for name, column in columns.items() if any(name in point.metrics for point in points)}


def _cost_columns(points: Sequence[Point]) -> dict[str, str]:
    """Names of columns by metric: what training cost, where any point has it."""
    return {str(name): column for name, column in COST_NAMES.items() if any(name in point.metrics for point in points)}


def _names(shares: dict[str, str], numbers: Sequence[int], costs: dict[str, str]) -> list[str]:
    numbered = (f"n={number}" for number in numbers)
    return ["trial", "method", "desired", "harmful", *shares.values(), *numbered, *costs.values()]


def _row(point: Point, numbers: Sequence[int], shares: Sequence[str], costs: Sequence[str]) -> list[str]:
    by_number = [point.metrics.get(Metric.harmful_accuracy(number), math.nan) for number in numbers]
    values = [_number(point.desired), _number(point.harmful), *(_share(point, name) for name in shares)]
    paid = (_amount(point.metrics.get(name, math.nan)) for name in costs)
    return [point.trial_id, LABELS.get(point.method, point.method), *values, *map(_number, by_number), *paid]


def _share(point: Point, name: str) -> str:
    """Format a share with half the width of its 95 % interval."""
    value, interval = point.metrics.get(name, math.nan), interval_of(point.metrics, name)
    if not math.isfinite(value):
        return "-"
    return f"{value:.2f}" if interval is None else f"{value:.2f}±{(interval[1] - interval[0]) / 2:.2f}"


def _amount(value: float) -> str:
    """Three digits of a number and a suffix, such as 1.23M; `-` where there is none."""
    if not math.isfinite(value):
        return "-"
    size = max(0, min(len(SUFFIXES) - 1, math.floor(math.log10(abs(value)) / 3))) if value else 0
    return f"{value / 1000**size:.3g}{SUFFIXES[size]}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
