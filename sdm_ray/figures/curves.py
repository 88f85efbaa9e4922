"""Curves of attack accuracy against the number of examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.style import (
    FRONT,
    LABELS,
    REFERENCE_STYLES,
    bar_lengths,
    draw_chance,
    draw_legend,
    new_figure,
    save_png,
)
from sdm_ray.frontier.points import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CellLike(Protocol):
    """Cell of an attack report: fields used by `Curve.from_cells`."""

    @property
    def num_examples(self) -> int: ...

    @property
    def accuracy(self) -> float: ...

    @property
    def accuracy_low(self) -> float: ...

    @property
    def accuracy_high(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Harmful accuracy after the strongest attack against the number of labelled examples."""

    label: str
    num_examples: tuple[int, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    """Lower ends of 95 % intervals; NaN if there is none."""
    high: tuple[float, ...]

    @classmethod
    def from_cells(cls, label: str, cells: Iterable[CellLike]) -> Curve:
        """Curve of an attack report's cells."""
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
        """Curve from a trial's metrics."""
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
    """Sorted numbers of labelled examples that points were attacked with."""
    return tuple(Metric.attacked_sizes(name for point in points for name in point.metrics))


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
        curves: one curve per model.
        path: path of the PNG.
        title: title of the figure; there is a default.
        chance: balanced accuracy of guessing, drawn as a line.
        styles: marker and colour by label.

    Raises:
        RunError: if the file cannot be written.
    """
    intervals = any(math.isfinite(value) for curve in curves for value in curve.low)
    measured = "balanced accuracy of the winning attack on the test split" + ("; 95 % intervals" if intervals else "")
    figure, axes = new_figure(title or "What an attacker recovers from n labelled examples", measured)
    _draw_curves(axes, curves, styles)
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


def _draw_curves(axes: Axes, curves: Sequence[Curve], styles: Mapping[str, tuple[str, str]]) -> None:
    for index, curve in enumerate(curves):
        marker, color = styles.get(curve.label, ("o", FRONT))
        spread = 1 + 0.025 * (index - (len(curves) - 1) / 2)  # offset, so that intervals do not overlap
        _, caps, bars = axes.errorbar(
            [number * spread for number in curve.num_examples],
            curve.accuracy,
            yerr=bar_lengths(curve.accuracy, curve.low, curve.high),
            label=LABELS.get(curve.label, curve.label),
            marker=marker,
            color=color,
            mec="white",
            ms=8,
            lw=1.6,
            elinewidth=1,
            capsize=2,
        )
        for part in (*caps, *bars):  # keeps means readable if many wide intervals overlap
            part.set_alpha(0.5)
