"""Kind of each point of a sweep in figures: a reference, on the front, or the reason why it is off the front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sdm_ray.figures.style import FAINT, FRONT, TRIAL
from sdm_ray.frontier.points import Point, near_front, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["reference", "front", "near", "dominated", "superseded", "scratch", "audit", "infeasible"]
Place = Callable[[Point], tuple[float, float]]
"""Position of a point in a figure."""


class Look(NamedTuple):
    """Style of the trials of a kind off the front."""

    words: str
    marker: str
    face: str
    edge: str


LOOKS: dict[Kind, Look] = {
    "dominated": Look("dominated", "o", TRIAL, "white"),
    "near": Look("interval reaches the frontier", "o", TRIAL, FRONT),
    "superseded": Look("not attacked again", "o", "white", TRIAL),
    "scratch": Look("no better than scratch", "x", FAINT, "#6B6B6B"),
    "audit": Look("held back by the audit", "s", "none", "#6B6B6B"),
    "infeasible": Look("infeasible", "o", "none", FAINT),
}
"""Kinds off the front, in drawing order."""


def kinds(points: Sequence[Point]) -> list[Kind]:
    """Kind of each point, in their order. Infeasible points, and those dominated by scratch, have no further kind."""
    front = {id(point) for point in pareto_front(points)}
    near = {id(point) for point in near_front(points)}

    def kind(point: Point) -> Kind:
        if point.is_reference:
            return "reference"
        if id(point) in front:
            return "front"
        if point.held_back:
            return "audit"
        if not point.feasible:
            return "infeasible"
        if point.dominated_by_scratch:
            return "scratch"
        if point.superseded:
            return "superseded"
        return "near" if id(point) in near else "dominated"

    return [kind(point) for point in points]


def grouped(points: Sequence[Point]) -> dict[Kind, list[Point]]:
    """Points by kind."""
    groups: dict[Kind, list[Point]] = {}
    for point, kind in zip(points, kinds(points), strict=True):
        groups.setdefault(kind, []).append(point)
    return groups


def draw_off_front(axes: Axes, groups: Mapping[Kind, Sequence[Point]], place: Place) -> None:
    """Draw trials off the front, without intervals, which would overlap.

    Points outside the axes' current limits are left out and counted in the legend.

    Args:
        axes: axes with their limits set.
        groups: trials by kind; kinds that are not in `LOOKS` are left out.
        place: position of a point.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    size = 5.5 if sum(map(len, groups.values())) <= 60 else 3.5
    for kind, look in LOOKS.items():
        group = [place(point) for point in groups.get(kind, ())]
        inside = [(x, y) for x, y in group if left <= x <= right and bottom <= y <= top]
        if not group:
            continue
        away = f", {len(group) - len(inside)} off scale" if len(group) > len(inside) else ""
        style: dict[str, Any] = {"mfc": look.face, "mec": look.edge, "mew": 0.6 if look.edge == "white" else 1.0}
        axes.plot(
            [x for x, _ in inside], [y for _, y in inside], look.marker, ls="none", ms=size, zorder=2, clip_on=False,
            label=f"{look.words} ({len(group)}{away})", **style,
        )  # fmt: skip
