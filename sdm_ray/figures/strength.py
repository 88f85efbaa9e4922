"""Figure of an attack's strength: accuracy by FLOPs and by labelled examples, extrapolated to ten times each."""

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
    """Accuracy against a budget, measured and extrapolated."""

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
    """Fields of an attack's strength used by the figure."""

    @property
    def search(self) -> TrendLike: ...

    @property
    def unit(self) -> str: ...

    @property
    def examples(self) -> TrendLike: ...


def strength_figure(strength: StrengthLike, path: Path, *, num_classes: int) -> Path:
    """Draw both budgets side by side to a PNG, atomically; a missing extrapolation is replaced by its reason.

    Args:
        strength: strength of the attack.
        path: path of the PNG.
        num_classes: C of the harmful task; guessing scores 1 / C.

    Raises:
        RunError: if the file cannot be written.
    """
    figure, left = new_figure("Would a stronger attack find more?", "")
    left.remove()
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (
            left,
            strength.search,
            f"{strength.unit} of the search (log scale)",
            "search: best on validation, mean over n",
        ),
        (right, strength.examples, "labelled harmful examples n (log scale)", "examples: worst case on test"),
    )
    _set_heights(left, [strength.search, strength.examples], 1 / num_classes)
    for axes, trend, budget, title in panels:
        axes.set_title(title, loc="left", fontsize=8, color=INK)
        axes.set_xlabel(budget)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
        _set_budgets(axes, trend)
        _draw_trend(axes, trend)
        draw_chance(axes, 1 / num_classes)
    if strength.examples.budgets:
        numbers = [*strength.examples.budgets, *strength.examples.ahead[-1:]]
        right.set_xticks(numbers, [f"{number:.0f}" for number in numbers])
        right.minorticks_off()
    left.set_ylabel("harmful accuracy")
    shown = [pair for axes in (left, right) for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in shown}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8.5, frameon=False
    )
    return save_png(figure, path)


def _set_heights(axes: Axes, trends: Sequence[TrendLike], chance: float) -> None:
    """Fit the y axis to all values and intervals, with space above them for text if an extrapolation is missing."""
    values = [chance]
    for trend in trends:
        values += [*trend.accuracy, *trend.low, *trend.high, *trend.ahead_low, *trend.ahead_high]
    low, high = padded_range([value for value in values if math.isfinite(value)], 0.1)
    axes.set_ylim(low, high if all(trend.ahead for trend in trends) else high + 0.2 * (high - low))


def _set_budgets(axes: Axes, trend: TrendLike) -> None:
    from matplotlib.ticker import NullFormatter

    if not trend.budgets:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    last = max(*trend.ahead, trend.budgets[-1]) if trend.ahead else trend.budgets[-1]
    margin = 1.25 if last > trend.budgets[0] else 3
    axes.set_xlim(trend.budgets[0] / margin, last * margin)


def _draw_trend(axes: Axes, trend: TrendLike) -> None:
    if trend.budgets:
        axes.errorbar(
            trend.budgets, trend.accuracy, yerr=bar_lengths(trend.accuracy, trend.low, trend.high), marker="o", ms=5,
            color=FRONT, mec="white", lw=1.6, elinewidth=1, capsize=2, label="measured, 95 % intervals",
        )  # fmt: skip
    if not trend.ahead:
        axes.text(
            0.03, 0.97, f"ten times as much cannot be told:\n{trend.reason}", transform=axes.transAxes, va="top",
            fontsize=8, color=INK,
        )  # fmt: skip
        return
    axes.fill_between(trend.ahead, trend.ahead_low, trend.ahead_high, color=TRIAL, alpha=0.25, lw=0)
    axes.plot(trend.ahead, trend.ahead_accuracy, "--", color=FRONT, lw=1.6, label="expected, up to ten times")
    value, low, high = trend.ahead_accuracy[-1], trend.ahead_low[-1], trend.ahead_high[-1]
    bottom, top = axes.get_ylim()
    over, under = (high - bottom) / (top - bottom) < 0.87, (low - bottom) / (top - bottom) > 0.15
    at, below = (high, False) if over else (low, True) if under else (value, False)
    axes.annotate(
        f"{value:.2f}\n[{low:.2f}, {high:.2f}]", (trend.ahead[-1], at), xytext=(0, -5 if below else 3),
        textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=8, color=INK,
    )  # fmt: skip
