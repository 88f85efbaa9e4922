"""The figure of a sweep's frontier: trials, references and the front between desired and harmful accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdm_ray.figures.curves import cell_numbers
from sdm_ray.figures.style import (
    FAINT,
    FRONT,
    LABELS,
    TRIAL,
    draw_chance,
    draw_legend,
    draw_markers,
    model_styles,
    new_figure,
    padded_range,
    save_png,
)
from sdm_ray.frontier.points import Point, near_front, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def frontier_figure(
    points: Sequence[Point], path: Path, *, title: str | None = None, chance: float | None = None
) -> Path:
    """Draw the frontier to a PNG, atomically.

    Args:
        points: all trials and references; those without finite objectives are left out.
        path: the PNG.
        title: of the figure; by default a general one.
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


class _Group(NamedTuple):
    """Trials that share a marker and an entry of the legend."""

    points: Sequence[Point]
    label: str
    face: str
    edge: str


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
    off_scale = f", {away} off scale" if away else ""
    groups = [
        _Group(feasible, f"dominated ({len(feasible)})", face=TRIAL, edge="white"),
        _Group(close, f"interval reaches the frontier ({len(close)})", face=TRIAL, edge=FRONT),
        _Group(superseded, f"not attacked again ({len(superseded)})", face="white", edge=TRIAL),
    ]
    groups = [group for group in groups if group.points]
    if infeasible:
        groups.append(_Group(inside, f"infeasible ({len(infeasible)}{off_scale})", face="none", edge=FAINT))
    for group in groups:
        xs, ys = [point.desired for point in group.points], [point.harmful for point in group.points]
        edge_width = 0.6 if group.edge == "white" else 1.0
        style: dict[str, Any] = {"mfc": group.face, "mec": group.edge, "mew": edge_width, "ms": size}
        axes.plot(xs, ys, "o", label=group.label, zorder=2, clip_on=False, **style)


def _draw_reference(axes: Axes, point: Point, style: tuple[str, str]) -> None:
    marker, color = style
    label = f"{LABELS.get(point.trial_id, point.trial_id)} ({point.desired:.2f}, {point.harmful:.2f})"
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
