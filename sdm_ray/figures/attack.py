"""What an attack leaves for people: a summary by family and n, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdm_ray.figures.curves import Curve, attack_curves_figure
from sdm_ray.figures.style import FRONT, REFERENCE_STYLES, draw_chance, draw_legend, new_figure, save_png

FAMILY_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#000000")
FAMILY_LINES = ("-", "--", "-.", ":")
"""Families differ by colour and, from the eighth on, by line."""


ReportLike = Any
"""An attack report, by `num_classes`, `cells`, `family_cells` and `records`."""


def write_figures(reports: Mapping[str, ReportLike], folder: Path) -> None:
    """Draw `attack.png` (accuracy against n), `best_so_far.png` and `recovery.png` (accuracy over steps), atomically.

    Args:
        reports: by model; the first one is the released model.
        folder: where they go.

    Raises:
        RunError: when a file cannot be written.
    """
    released = next(iter(reports.values()))
    curves = [Curve.from_cells(name, report.cells) for name, report in reports.items()]
    attack_curves_figure(curves, folder / "attack.png", chance=1 / released.num_classes)
    _best_so_far(released, folder / "best_so_far.png")
    _recovery(reports, folder / "recovery.png")


def _best_so_far(report: ReportLike, path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    largest = max(cell.num_examples for cell in report.family_cells)
    measured = (
        f"best validation accuracy of the search so far, n = {largest}; a curve that still rises wants more trials"
    )
    figure, axes = new_figure("Has the attacker's search flattened?", measured)
    cells = [cell for cell in report.family_cells if cell.num_examples == largest]
    for index, cell in enumerate(cells):
        color = FAMILY_COLORS[index % len(FAMILY_COLORS)]
        line = FAMILY_LINES[index // len(FAMILY_COLORS) % len(FAMILY_LINES)]
        trials = range(1, len(cell.best_so_far) + 1)
        axes.step(trials, cell.best_so_far, where="post", color=color, ls=line, lw=1.6, label=cell.family)
    draw_chance(axes, 1 / report.num_classes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("search points")
    axes.set_ylabel("validation accuracy")
    draw_legend(figure, axes)
    save_png(figure, path)


def _recovery(reports: Mapping[str, ReportLike], path: Path) -> None:
    measured = "mean validation accuracy of the winner's re-runs at the largest n where it trains by steps"
    figure, axes = new_figure("How many steps the winning attack takes", measured)
    drawn = False
    for name, report in reports.items():
        steps, accuracy, size = _course(report)
        if steps:
            drawn = True
            marker, color = REFERENCE_STYLES.get(name, ("o", FRONT))
            axes.plot(
                steps, accuracy, marker=marker, color=color, mec="white", ms=8, lw=1.6, label=f"{name}, n = {size}"
            )
    draw_chance(axes, 1 / next(iter(reports.values())).num_classes)
    if drawn:
        axes.set_xscale("log")
    axes.set_xlabel("steps of the attack (log scale)")
    axes.set_ylabel("validation accuracy")
    draw_legend(figure, axes)
    save_png(figure, path)


def _course(report: ReportLike) -> tuple[list[int], list[float], int]:
    """Mean validation accuracy over the re-runs of the worst attack that has steps, at the largest n."""
    for cell in sorted(report.cells, key=lambda cell: -cell.num_examples):
        curves = [
            (record.curve_steps, record.val_accuracy_curve)
            for record in report.records
            if record.phase == "rerun" and (record.family, record.num_examples) == (cell.family, cell.num_examples)
            and record.val_accuracy_curve
        ]  # fmt: skip
        same = [accuracies for steps, accuracies in curves if steps == curves[0][0]]
        if same:
            means = [sum(values) / len(values) for values in zip(*same, strict=True)]
            return list(curves[0][0]), means, cell.num_examples
    return [], [math.nan], 0
