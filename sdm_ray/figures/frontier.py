"""Figure of a sweep's frontier: trials, references and the front in desired and harmful accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdm_ray.figures.curves import cell_numbers
from sdm_ray.figures.kinds import draw_off_front, grouped
from sdm_ray.figures.style import (
    FRONT,
    LABELS,
    Spot,
    draw_chance,
    draw_legend,
    draw_markers,
    model_styles,
    new_figure,
    padded_range,
    save_png,
)
from sdm_ray.frontier.points import Point, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def frontier_figure(
    points: Sequence[Point], path: Path, *, title: str | None = None, chance: float | None = None
) -> Path:
    """Draw the frontier to a PNG, atomically.

    Args:
        points: all trials and references; those without finite objectives are left out.
        path: path of the PNG.
        title: title of the figure; there is a default.
        chance: balanced harmful accuracy of guessing, 1 / number of classes, drawn as a line.

    Raises:
        RunError: if the file cannot be written.
    """
    drawn = [point for point in points if math.isfinite(point.desired) and math.isfinite(point.harmful)]
    figure, axes = new_figure(title or "What blocking costs, and what it buys", _measured(drawn))
    front = pareto_front(drawn)
    references = sorted((point for point in drawn if point.is_reference), key=lambda point: -point.harmful)
    _set_limits(axes, drawn, front, chance)
    _draw_front(axes, front)
    draw_off_front(axes, grouped(drawn), lambda point: (point.desired, point.harmful))
    styles = model_styles(point.trial_id for point in points if point.is_reference)
    least = math.inf
    for point in references:  # from the top, so that off-scale labels do not overlap
        least = _draw_reference(axes, point, styles[point.trial_id], least)
    if chance is not None:
        draw_chance(axes, chance)
    axes.set_xlabel("desired accuracy  (higher is better →)")
    axes.set_ylabel("harmful accuracy after the attack  (← lower is better)")
    draw_legend(figure, axes)
    return save_png(figure, path)


def _measured(points: Sequence[Point]) -> str:
    numbers = cell_numbers(points)
    over = f", mean over n = {', '.join(map(str, numbers))}" if numbers else ""
    bars = "; 95 % intervals" if any(point.harmful_interval or point.desired_interval for point in points) else ""
    return f"harmful: worst case over the attacker's search{over}; test split{bars}"


def _set_limits(axes: Axes, points: Sequence[Point], front: Sequence[Point], chance: float | None) -> None:
    """Fit the axes to feasible trials and references, with intervals; points to the left are off scale."""
    core = [point for point in points if point.feasible and point.method not in ("random", "scratch")] or list(points)
    least = min((point.desired for point in core), default=math.nan)
    core += [point for point in points if point.method == "scratch" and point.desired >= least and point not in core]
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
    draw_markers(axes, [_spot(point) for point in front], f"frontier ({len(front)})", "o", FRONT, size, zorder=6)


def _spot(point: Point) -> Spot:
    return Spot(point.desired, point.harmful, point.desired_interval, point.harmful_interval)


def _draw_reference(axes: Axes, point: Point, style: tuple[str, str], least: float) -> float:
    """Draw a reference; if off scale, its marker is at the left edge, with a label below height `least`.

    Returns:
        Height below which the next label fits.
    """
    marker, color = style
    label = f"{LABELS.get(point.trial_id, point.trial_id)} ({point.desired:.2f}, {point.harmful:.2f})"
    if point.method == "random":
        axes.axhline(point.harmful, color=color, lw=0.8, ls="--", alpha=0.5, zorder=1)
    left, right = axes.get_xlim()
    if point.desired >= left:
        draw_markers(axes, [_spot(point)], label, marker, color, 8, zorder=5)
        return least
    inside = left + 0.02 * (right - left)
    bottom, top = axes.get_ylim()
    line = 0.045 * (top - bottom)
    height = min(point.harmful, least)
    axes.plot([inside], [point.harmful], marker, mfc=color, mec="white", ms=8, zorder=5, label=label)
    axes.annotate(
        f"◂ off scale, {point.desired:.2f}", (inside, height), xytext=(7, 5), textcoords="offset points",
        fontsize=7.5, color=color, zorder=5, bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5},
    )  # fmt: skip
    return height - line
