"""Figures and tables of a sweep: the frontier, the attack curves, the table of the front."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.table import Table

from sdm_ray.core.metric_names import Metric
from sdm_ray.frontier import Point, near_front, pareto_front
from sdm_ray.plotting import (
    FAINT,
    FRONT,
    REFERENCE_STYLES,
    TRIAL,
    WORDS,
    bar_lengths,
    draw_chance,
    draw_legend,
    draw_markers,
    model_styles,
    new_figure,
    padded_range,
    save_png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELL = re.compile(r"harmful/n(\d+)/accuracy")


class CellLike(Protocol):
    """One cell of an attack report: what `Curve.from_cells` reads of it."""

    num_examples: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Harmful accuracy after the worst attack against the number of labelled examples."""

    label: str
    num_examples: tuple[int, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    """Lower ends of 95 % intervals; NaN where there is none."""
    high: tuple[float, ...]

    @classmethod
    def from_cells(cls, label: str, cells: Iterable[CellLike]) -> Curve:
        """The curve of an attack report's cells."""
        ordered = sorted(cells, key=lambda cell: cell.num_examples)
        return cls(
            label=label,
            num_examples=tuple(cell.num_examples for cell in ordered),
            accuracy=tuple(cell.accuracy for cell in ordered),
            low=tuple(cell.accuracy_low for cell in ordered),
            high=tuple(cell.accuracy_high for cell in ordered),
        )

    @classmethod
    def from_point(cls, point: Point, label: str | None = None) -> Curve:
        """The curve that a trial's metrics hold."""
        numbers = cell_numbers([point])
        names = [Metric.harmful_accuracy(number) for number in numbers]
        return cls(
            label=label or point.trial_id,
            num_examples=numbers,
            accuracy=tuple(point.metrics[name] for name in names),
            low=tuple(point.metrics.get(Metric.low(name), math.nan) for name in names),
            high=tuple(point.metrics.get(Metric.high(name), math.nan) for name in names),
        )


def cell_numbers(points: Iterable[Point]) -> tuple[int, ...]:
    """The numbers of labelled examples that points were attacked with, rising."""
    matches = (_CELL.fullmatch(name) for point in points for name in point.metrics)
    return tuple(sorted({int(match[1]) for match in matches if match}))


def frontier_figure(
    points: Sequence[Point], path: Path, *, title: str | None = None, chance: float | None = None
) -> Path:
    """Draw the frontier to a PNG, atomically.

    Args:
        points: all trials and references; those without finite objectives are left out.
        path: the PNG.
        title: what was measured; by default it is said from the metrics.
        chance: balanced harmful accuracy of guessing, 1 / number of classes; drawn as a line.

    Raises:
        RunError: when the file cannot be written.
    """
    drawn = [point for point in points if math.isfinite(point.desired) and math.isfinite(point.harmful)]
    figure, axes = new_figure(title or "What blocking costs, and what it buys", _measured(drawn))
    front = pareto_front(drawn)
    references = sorted((point for point in drawn if point.is_reference), key=lambda point: -point.harmful)
    _set_limits(axes, drawn, front, chance)
    _draw_front(axes, front)
    _draw_trials(axes, [point for point in drawn if not point.is_reference], front)
    styles = model_styles(point.trial_id for point in points if point.is_reference)
    for point in references:
        _draw_reference(axes, point, styles[point.trial_id])
    if chance is not None:
        draw_chance(axes, chance)
    axes.set_xlabel("desired accuracy  (higher is better →)")
    axes.set_ylabel("harmful accuracy after the attack  (← lower is better)")
    draw_legend(figure, axes)
    return save_png(figure, path)


def attack_curves_figure(
    curves: Sequence[Curve],
    path: Path,
    *,
    title: str | None = None,
    chance: float | None = None,
    styles: Mapping[str, tuple[str, str]] = REFERENCE_STYLES,
) -> Path:
    """Draw harmful accuracy against the attacker's number of examples to a PNG, atomically.

    Args:
        curves: one for each model.
        path: the PNG.
        title: what was measured.
        chance: balanced accuracy of guessing; drawn as a line.
        styles: marker and colour by label.

    Raises:
        RunError: when the file cannot be written.
    """
    intervals = any(math.isfinite(value) for curve in curves for value in curve.low)
    said = "balanced accuracy of the winning attack on the test split" + ("; 95 % intervals" if intervals else "")
    figure, axes = new_figure(title or "What an attacker recovers from n labelled examples", said)
    for index, curve in enumerate(curves):
        marker, color = styles.get(curve.label, ("o", FRONT))
        spread = 1 + 0.025 * (index - (len(curves) - 1) / 2)  # side by side, so that intervals do not hide each other
        _, caps, bars = axes.errorbar(
            [number * spread for number in curve.num_examples],
            curve.accuracy,
            yerr=bar_lengths(curve.accuracy, curve.low, curve.high),
            label=WORDS.get(curve.label, curve.label),
            marker=marker,
            color=color,
            mec="white",
            ms=8,
            lw=1.6,
            elinewidth=1,
            capsize=2,
        )
        for part in (*caps, *bars):  # means stay readable where many wide intervals meet
            part.set_alpha(0.5)
    numbers = sorted({number for curve in curves for number in curve.num_examples})
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    if chance is not None:
        draw_chance(axes, chance)
    axes.set_xlabel("labelled harmful examples n (log scale)")
    axes.set_ylabel("harmful accuracy after the attack")
    draw_legend(figure, axes)
    return save_png(figure, path)


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


def _measured(points: Sequence[Point]) -> str:
    numbers = cell_numbers(points)
    over = f", mean over n = {', '.join(map(str, numbers))}" if numbers else ""
    bars = "; 95 % intervals" if any(point.harmful_interval or point.desired_interval for point in points) else ""
    return f"harmful: worst case over the attacker's search{over}; test split{bars}"


def _set_limits(axes: Axes, points: Sequence[Point], front: Sequence[Point], chance: float | None) -> None:
    """The range of feasible trials and references, intervals included; what lies to the left of it is off scale."""
    core = [point for point in points if point.feasible and point.method != "random"] or list(points)
    shown = [*front, *(point for point in points if point.is_reference)]
    xs = [point.desired for point in core]
    xs += [end for point in shown if point in core for end in point.desired_interval or ()]
    ys = [point.harmful for point in points] + [end for point in shown for end in point.harmful_interval or ()]
    if not xs:
        return
    if chance is not None:
        ys.append(chance)
    axes.set_xlim(*padded_range(xs, 0.02))
    axes.set_ylim(*padded_range(ys, 0.1))


def _draw_front(axes: Axes, front: Sequence[Point]) -> None:
    if not front:
        return
    left, top = axes.get_xlim()[0], axes.get_ylim()[1]
    xs = [left, *(point.desired for point in front), front[-1].desired]
    ys = [front[0].harmful, *(point.harmful for point in front), top]
    axes.step(xs, ys, where="pre", color=FRONT, lw=1.5, zorder=3)
    axes.fill_between(xs, ys, top, step="pre", color=FRONT, alpha=0.06, lw=0, zorder=1)
    size = 7.5 if len(front) <= 12 else 5
    draw_markers(axes, front, f"frontier ({len(front)})", "o", FRONT, size, zorder=6)


def _draw_trials(axes: Axes, trials: Sequence[Point], front: Sequence[Point]) -> None:
    """Trials off the front, without their intervals, which would hide each other.

    Those that the final attack left out were measured by a weaker one, and are drawn as rings.
    """
    fronted = {id(point) for point in front}
    size = 5.5 if len(trials) <= 60 else 3.5
    left = axes.get_xlim()[0]
    close = [point for point in near_front([*front, *trials]) if id(point) not in fronted]
    fronted |= {id(point) for point in close}
    feasible = [point for point in trials if point.feasible and id(point) not in fronted and not point.superseded]
    superseded = [point for point in trials if point.feasible and point.superseded]
    infeasible = [point for point in trials if not point.feasible]
    inside = [point for point in infeasible if point.desired >= left]
    away = len(infeasible) - len(inside)
    said = f"infeasible ({len(infeasible)}" + (f", {away} off scale)" if away else ")")
    for group, label, face, edge in (
        (feasible, f"dominated ({len(feasible)})", TRIAL, "white"),
        (close, f"interval reaches the frontier ({len(close)})", TRIAL, FRONT),
        (superseded, f"not attacked again ({len(superseded)})", "white", TRIAL),
        (inside, said, "none", FAINT),
    ):
        xs, ys = [point.desired for point in group], [point.harmful for point in group]
        if group or (face == "none" and away):
            style: dict[str, Any] = {"mfc": face, "mec": edge, "mew": 0.6 if edge == "white" else 1.0, "ms": size}
            axes.plot(xs, ys, "o", label=label, zorder=2, clip_on=False, **style)


def _draw_reference(axes: Axes, point: Point, style: tuple[str, str]) -> None:
    marker, color = style
    label = f"{WORDS.get(point.trial_id, point.trial_id)} ({point.desired:.2f}, {point.harmful:.2f})"
    if point.method == "random":
        axes.axhline(point.harmful, color=color, lw=0.8, ls="--", alpha=0.5, zorder=1)
    left, right = axes.get_xlim()
    if point.desired >= left:
        draw_markers(axes, [point], label, marker, color, 8, zorder=5)
        return
    inside = left + 0.02 * (right - left)
    axes.plot([inside], [point.harmful], marker, mfc=color, mec="white", ms=8, zorder=5, label=label)
    axes.annotate(
        f"◂ off scale, {point.desired:.2f}", (inside, point.harmful), xytext=(7, 5), textcoords="offset points",
        fontsize=7.5, color=color, zorder=5, bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5},
    )  # fmt: skip
