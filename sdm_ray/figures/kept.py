"""Figure of head starts kept: on benign tasks against the harmful one, from scratch (0, 0) to public (1, 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.curves import cell_numbers
from sdm_ray.figures.kinds import draw_off_front, grouped
from sdm_ray.figures.style import (
    FAINT,
    FRONT,
    INK,
    LABELS,
    REFERENCE_STYLES,
    Spot,
    draw_legend,
    draw_markers,
    model_styles,
    new_figure,
    padded_range,
    save_png,
)
from sdm_ray.frontier.kept import WORDS, good_metric, kept
from sdm_ray.frontier.points import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "kept.png"
LEAST, MOST = -0.5, 1.6
"""Range of shares in the figure; a small head start can give any ratio."""
CORNERS = {"pretrained": (1.0, 1.0), "scratch": (0.0, 0.0)}
"""Shares that references have by definition; drawn even if a sweep lacks the references."""


def kept_figure(points: Sequence[Point], path: Path, *, title: str | None = None) -> Path | None:
    """Draw head starts kept to a PNG, atomically.

    Args:
        points: all trials and references; those without both numbers are left out.
        path: path of the PNG.
        title: title of the figure; there is a default.

    Returns:
        The path; None, with nothing written, if no point has both numbers.

    Raises:
        RunError: if the file cannot be written.
    """
    good = good_metric(points)
    drawn = [point for point in points if kept(point, good).known]
    if not drawn:
        return None
    spots = {id(point): _spot(point, good) for point in drawn}
    figure, axes = new_figure(title or "What is forgotten, and what is blocked", _measured(points, drawn, good))
    groups = grouped(points)  # all points: an undrawable one still dominates others
    groups = {kind: [point for point in group if id(point) in spots] for kind, group in groups.items()}
    front, references = groups.get("front", []), groups.get("reference", [])
    _set_limits(axes, list(spots.values()), [spots[id(point)] for point in (*front, *references)])
    _draw_ground(axes, list(spots.values()))
    if front:
        shown, size = [spots[id(point)] for point in front], 7.5 if len(front) <= 12 else 5
        away = sum(not _inside(axes, spot) for spot in shown)
        label = f"frontier ({len(front)}{f', {away} off scale' if away else ''})"
        draw_markers(axes, shown, label, "o", FRONT, size, zorder=6)
    draw_off_front(axes, groups, lambda point: (spots[id(point)].x, spots[id(point)].y))
    _draw_references(axes, references, spots)
    axes.set_xlabel(f"head start kept on {WORDS[good]}  (higher is better →)")
    axes.set_ylabel("head start kept on the harmful task\n(← lower is better)")
    draw_legend(figure, axes)
    return save_png(figure, path)


def _spot(point: Point, good: Metric) -> Spot:
    share = kept(point, good)
    return Spot(share.good, share.harmful, share.good_interval, share.harmful_interval)


def _measured(points: Sequence[Point], drawn: Sequence[Point], good: Metric) -> str:
    numbers = cell_numbers(drawn)
    over = f", mean over n = {', '.join(map(str, numbers))}" if numbers else ""
    shares = [kept(point, good) for point in drawn]
    bars = "; 95 % intervals" if any(share.good_interval or share.harmful_interval for share in shares) else ""
    missing = sum(not point.is_reference for point in points) - sum(not point.is_reference for point in drawn)
    without = f"; {missing} trials without both numbers" if missing else ""
    return f"0: as from scratch, 1: as the public encoder; same attack{over}{bars}{without}"


def _set_limits(axes: Axes, spots: Sequence[Spot], with_bars: Sequence[Spot]) -> None:
    """Fit the axes to the corners and all points, with the drawn intervals, within `LEAST` and `MOST`."""
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    xs += [end for spot in with_bars for end in spot.x_interval or ()]
    ys += [end for spot in with_bars for end in spot.y_interval or ()]
    for values, set_limits in ((xs, axes.set_xlim), (ys, axes.set_ylim)):
        inside = [min(max(value, LEAST), MOST) for value in values]
        low, high = padded_range([0.0, 1.0, *inside], 1.0)
        set_limits(max(low, LEAST), min(high, MOST))


def _inside(axes: Axes, spot: Spot) -> bool:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return left <= spot.x <= right and bottom <= spot.y <= top


def _draw_ground(axes: Axes, spots: Sequence[Spot]) -> None:
    """Draw the ideal, the diagonal of forgetting, and the shaded blocking region below it."""
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.fill_between([low, high], [low, low], [low, high], color=FRONT, alpha=0.06, lw=0, zorder=0)
    axes.plot([low, high], [low, high], color=INK, lw=1, ls="--", alpha=0.7, zorder=1)
    axes.plot([1], [0], "*", color="#000000", ms=14, mec="white", mew=0.8, zorder=4, label="ideal (1, 0)")
    for at in (axes.axhline, axes.axvline):
        at(0, color=FAINT, lw=0.7, zorder=1)
        at(1, color=FAINT, lw=0.7, zorder=1)
    box = {"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1.0}
    x, y = _free([(share, share) for share in (0.5, 0.35, 0.65, 0.25, 0.75)], spots)
    axes.annotate(
        "forgetting", (x, y), xytext=(-3, 3), textcoords="offset points", rotation=45, rotation_mode="anchor",
        transform_rotates_text=True, ha="center", va="bottom", fontsize=8.5, color=INK, zorder=2, bbox=box,
    )  # fmt: skip
    x, y = _free([(0.72, 0.25), (0.6, 0.12), (0.85, 0.45), (0.5, 0.25), (0.85, 0.15)], spots)
    axes.annotate("blocking", (x, y), ha="center", va="center", fontsize=8.5, color=FRONT, zorder=2)


def _free(places: Sequence[tuple[float, float]], spots: Sequence[Spot]) -> tuple[float, float]:
    """First place without a nearby point, otherwise the one furthest from all points."""

    def distance(place: tuple[float, float]) -> float:
        near = [max(abs(spot.x - place[0]), 1.5 * abs(spot.y - place[1])) for spot in spots]
        return min(near, default=math.inf)

    return next((place for place in places if distance(place) > 0.12), max(places, key=distance))


def _draw_references(axes: Axes, references: Sequence[Point], spots: dict[int, Spot]) -> None:
    styles = model_styles(point.trial_id for point in references)
    for point in references:
        marker, color = styles[point.trial_id]
        spot = spots[id(point)]
        label = f"{LABELS.get(point.trial_id, point.trial_id)} ({spot.x:.2f}, {spot.y:.2f})"
        label += "" if _inside(axes, spot) else ", off scale"
        draw_markers(axes, [spot], label, marker, color, 8, zorder=5)
    for name, (x, y) in CORNERS.items():
        if name not in {point.trial_id for point in references}:
            marker, color = REFERENCE_STYLES[name]
            label = f"{LABELS.get(name, name)} ({x:.0f}, {y:.0f})"
            axes.plot([x], [y], marker, color=color, mec="white", ms=8, ls="none", zorder=5, label=label)
