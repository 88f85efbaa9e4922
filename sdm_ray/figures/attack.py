"""Figures of an attack: accuracy against n, progress of the search, accuracy over the winner's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from sdm_ray.figures.curves import CellLike, Curve, attack_curves_figure
from sdm_ray.figures.style import FRONT, REFERENCE_STYLES, draw_chance, draw_legend, new_figure, save_png

FAMILY_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#000000")
FAMILY_LINES = ("-", "--", "-.", ":")
"""Line styles of families: they differ by colour and, from the eighth on, by line style."""


class FamilyCellLike(CellLike, Protocol):
    """Cell of one attack family."""

    @property
    def family(self) -> str: ...

    @property
    def best_so_far(self) -> Sequence[float]:
        """Best validation accuracy after each search point."""
        ...


class RecordLike(Protocol):
    """A fine-tune of an attack, with its validation accuracy at some steps."""

    @property
    def phase(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def num_examples(self) -> int: ...

    @property
    def curve_steps(self) -> Sequence[int]: ...

    @property
    def val_accuracy_curve(self) -> Sequence[float]: ...


class ReportLike(Protocol):
    """Fields of an attack report used by the figures."""

    @property
    def num_classes(self) -> int: ...

    @property
    def cells(self) -> Sequence[FamilyCellLike]:
        """Winning family at each n."""
        ...

    @property
    def family_cells(self) -> Sequence[FamilyCellLike]: ...

    @property
    def records(self) -> Sequence[RecordLike]: ...


def write_figures(reports: Mapping[str, ReportLike], folder: Path) -> None:
    """Draw `attack.png` (accuracy against n), `best_so_far.png` and `recovery.png` (accuracy over steps), atomically.

    Args:
        reports: reports by model, the released model first.
        folder: target folder.

    Raises:
        RunError: if a file cannot be written.
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
        curve = _recovery_curve(report)
        if curve is not None:
            drawn = True
            marker, color = REFERENCE_STYLES.get(name, ("o", FRONT))
            label = f"{name}, n = {curve.num_examples}"
            axes.plot(curve.steps, curve.accuracy, marker=marker, color=color, mec="white", ms=8, lw=1.6, label=label)
    draw_chance(axes, 1 / next(iter(reports.values())).num_classes)
    if drawn:
        axes.set_xscale("log")
    axes.set_xlabel("steps of the attack (log scale)")
    axes.set_ylabel("validation accuracy")
    draw_legend(figure, axes)
    save_png(figure, path)


class _RecoveryCurve(NamedTuple):
    """Mean validation accuracy over the re-runs of an attack, by step."""

    steps: Sequence[int]
    accuracy: Sequence[float]
    num_examples: int


def _recovery_curve(report: ReportLike) -> _RecoveryCurve | None:
    """Curve of the winning attack at the largest n whose winner trains in steps; None if there is none."""
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
            return _RecoveryCurve(curves[0][0], means, cell.num_examples)
    return None
