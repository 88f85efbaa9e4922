"""Common style of figures: size, colours, markers, intervals, legend. matplotlib on the Agg canvas, without pyplot."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdm_ray.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT, TRIAL, FAINT, INK = "#0072B2", "#56B4E9", "#9A9A9A", "#333333"
REFERENCE_STYLES = {
    "pretrained": ("s", "#D55E00"),
    "tuned": ("D", "#CC79A7"),
    "ac": ("^", "#8A6D00"),
    "random": ("v", "#000000"),
    "mlac": ("P", "#009E73"),
    "scratch": ("<", "#E69F00"),
    "erase": (">", "#56B4E9"),
    "distil": ("p", "#0072B2"),
    "distilled_scratch": ("h", "#882255"),
}
"""Marker and colour of each reference: Okabe and Ito's palette (yellow darkened for a white background), with one shape
each, so that colour is never the only distinction."""
VARIANT_STYLES = (
    ("P", "#009E73"), ("D", "#0072B2"), ("s", "#56B4E9"), ("o", "#6A3D9A"), ("^", "#E69F00"), ("v", "#882255"),
    ("P", "#6A3D9A"), ("D", "#56B4E9"), ("s", "#009E73"), ("o", "#D55E00"),
)  # fmt: skip
"""Marker and colour of named variants, in order; they repeat after the last one."""
LABELS = {"ac": "AC", "mlac": "MLAC", "scratch": "from scratch", "distilled_scratch": "distilled scratch"}
"""Names of methods in figures and tables; other names are unchanged."""


def model_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Marker and colour by name: fixed for known references, by order of appearance for other models."""
    unknown = [name for name in dict.fromkeys(names) if name not in REFERENCE_STYLES]
    return REFERENCE_STYLES | {name: VARIANT_STYLES[index % len(VARIANT_STYLES)] for index, name in enumerate(unknown)}


def new_figure(title: str, measured: str) -> tuple[Figure, Axes]:
    """Create a figure with a title and, below it, a line that describes the measurement."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # silences the font cache message
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.3), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes.set_title(measured, loc="left", fontsize=8, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    return figure, axes


def padded_range(values: Sequence[float], least: float) -> tuple[float, float]:
    """Range of at least `least` around values, with a margin."""
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


class Spot(NamedTuple):
    """Position of a point in a figure, with its 95 % intervals along both axes."""

    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def draw_markers(
    axes: Axes, spots: Sequence[Spot], label: str, marker: str, color: str, size: float, *, zorder: float
) -> None:
    """Draw points with their intervals as error bars."""
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    axes.errorbar(
        xs,
        ys,
        xerr=_intervals(xs, [spot.x_interval for spot in spots]),
        yerr=_intervals(ys, [spot.y_interval for spot in spots]),
        label=label,
        marker=marker,
        color=color,
        ls="none",
        elinewidth=0.9,
        ms=size,
        mec="white",
        zorder=zorder,
    )


def _intervals(values: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> Any:
    ends = [interval or (math.nan, math.nan) for interval in intervals]
    return bar_lengths(values, [end[0] for end in ends], [end[1] for end in ends])


def bar_lengths(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Any:
    """Lengths of the error bars below and above values, 0 if an end is missing; None if all are 0."""
    below = [value - end if math.isfinite(end) else 0.0 for value, end in zip(values, low, strict=True)]
    above = [end - value if math.isfinite(end) else 0.0 for value, end in zip(values, high, strict=True)]
    lengths = [[max(0.0, length) for length in side] for side in (below, above)]
    return lengths if any(map(any, lengths)) else None


def draw_chance(axes: Axes, chance: float, label: str = "guessing ") -> None:
    """Draw a dotted line at the score of guessing."""
    axes.axhline(chance, color=INK, lw=0.9, ls=(0, (1, 2)), zorder=1, label=f"{label} {chance:.2f}")


def draw_legend(figure: Figure, axes: Axes) -> None:
    """Draw a legend beside the axes, in drawing order (by default matplotlib puts lines before error bars)."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        order = sorted(range(len(handles)), key=lambda index: _drawn_at(handles[index]))
        figure.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            loc="outside right center",
            fontsize=8.5,
            frameon=False,
            labelspacing=0.8,
        )


def _drawn_at(handle: Any) -> int:
    line = handle[0] if isinstance(handle, tuple) else handle
    return int(line.axes.lines.index(line))


def save_png(figure: Figure, path: Path) -> Path:
    """Write the figure, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
