"""The figure of an attack's strength: what it finds by FLOPs and by labelled examples, and ten times on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdm_ray.figures.style import FRONT, INK, TRIAL, bar_lengths, draw_chance, new_figure, padded_range, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "strength.png"


class TrendLike(Protocol):
    """Accuracy against a budget, measured and ahead."""

    @property
    def budgets(self) -> Sequence[float]: ...

    @property
    def accuracy(self) -> Sequence[float]: ...

    @property
    def low(self) -> Sequence[float]: ...

    @property
    def high(self) -> Sequence[float]: ...

    @property
    def ahead(self) -> Sequence[float]: ...

    @property
    def ahead_accuracy(self) -> Sequence[float]: ...

    @property
    def ahead_low(self) -> Sequence[float]: ...

    @property
    def ahead_high(self) -> Sequence[float]: ...

    @property
    def reason(self) -> str: ...


class StrengthLike(Protocol):
    """What the figure reads of an attack's strength."""

    @property
    def search(self) -> TrendLike: ...

    @property
    def unit(self) -> str: ...

    @property
    def examples(self) -> TrendLike: ...


def strength_figure(strength: StrengthLike, path: Path, *, num_classes: int) -> Path:
    """Draw both budgets side by side to a PNG, atomically; what cannot be told is said in its place.

    Args:
        strength: of the attack.
        path: the PNG.
        num_classes: C of the harmful task; guessing scores 1 / C.

    Raises:
        RunError: when the file cannot be written.
    """
    figure, left = new_figure("Would a stronger attack find more?", "")
    left.remove()
    left, right = figure.subplots(1, 2, sharey=True)
    trends = (strength.search, strength.examples)
    panels = (
        (
            left,
            "by search",
            f"{strength.unit} of the search (log scale)",
            "validation accuracy, best so far, mean over n",
        ),
        (right, "by examples", "labelled harmful examples n (log scale)", "test accuracy, worst case at each n"),
    )
    values = [value for trend in trends for value in _values(trend) if math.isfinite(value)]
    for (axes, title, budget, measured), trend in zip(panels, trends, strict=True):
        axes.set_title(f"{title}: {measured}", loc="left", fontsize=8, color=INK)
        _draw_trend(axes, trend)
        draw_chance(axes, 1 / num_classes)
        axes.set_xlabel(budget)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    left.set_ylim(*padded_range([1 / num_classes, *values], 0.1))
    left.set_ylabel("harmful accuracy")
    handles = {label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8.5, frameon=False
    )
    return save_png(figure, path)


def _values(trend: TrendLike) -> list[float]:
    return [*trend.accuracy, *trend.low, *trend.high, *trend.ahead_low, *trend.ahead_high]


def _draw_trend(axes: Axes, trend: TrendLike) -> None:
    if trend.budgets:
        axes.set_xscale("log")
        axes.errorbar(
            trend.budgets, trend.accuracy, yerr=bar_lengths(trend.accuracy, trend.low, trend.high), marker="o", ms=5,
            color=FRONT, mec="white", lw=1.6, elinewidth=1, capsize=2, label="measured, 95 % intervals",
        )  # fmt: skip
    if trend.ahead:
        axes.fill_between(trend.ahead, trend.ahead_low, trend.ahead_high, color=TRIAL, alpha=0.25, lw=0)
        axes.plot(trend.ahead, trend.ahead_accuracy, "--", color=FRONT, lw=1.6, label="expected up to ten times")
        said = f"{trend.ahead_accuracy[-1]:.2f}\n[{trend.ahead_low[-1]:.2f}, {trend.ahead_high[-1]:.2f}]"
        axes.annotate(
            said, (trend.ahead[-1], trend.ahead_accuracy[-1]), xytext=(-4, 6), textcoords="offset points", ha="right",
            fontsize=8, color=INK,
        )  # fmt: skip
    else:
        axes.text(
            0.04, 0.96, f"ten times as much cannot be told:\n{trend.reason}", transform=axes.transAxes, va="top",
            fontsize=8, color=INK, wrap=True,
        )  # fmt: skip
