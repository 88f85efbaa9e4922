"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from sdm_ray.core.markup import one_line

if TYPE_CHECKING:
    from sdm_ray.attack.protocol import AttackReport, Cell


def attack_table(reports: Mapping[str, AttackReport]) -> Table:
    """Accuracy after the strongest attack at each n, with 95 % intervals over fresh re-runs; one row per model."""
    table = Table(
        title="harmful accuracy after the attack (test split)", box=None, pad_edge=False, title_justify="left"
    )
    table.add_column("model")
    first = next(iter(reports.values()))
    for cell in first.cells:
        table.add_column(f"n = {cell.num_examples}", justify="right")
    table.add_column("mean over n", justify="right")
    for name, report in reports.items():
        cells = [
            f"{cell.accuracy:.3f}\n{cell.accuracy_low:.2f} to {cell.accuracy_high:.2f}" if cell.valid else "invalid"
            for cell in report.cells
        ]
        table.add_row(escape(one_line(name)), *cells, f"{report.worst_accuracy:.3f}")
    return table


def family_table(report: AttackReport) -> Table:
    """Accuracy of each family's winner at each n, and the winner at the largest n."""
    table = Table(title="by family", box=None, pad_edge=False, title_justify="left")
    table.add_column("family")
    sizes = sorted({cell.num_examples for cell in report.family_cells})
    for size in sizes:
        table.add_column(f"n = {size}", justify="right")
    table.add_column("winner at the largest n", overflow="fold")
    for family in dict.fromkeys(cell.family for cell in report.family_cells):
        cells = [report.cell(family, size) for size in sizes]
        values = ["" if cell is None else _accuracy(cell) for cell in cells]
        last = cells[-1]
        winner = "" if last is None or last.winner is None else last.winner.describe().removeprefix(f"{family}, ")
        table.add_row(escape(one_line(family)), *values, escape(one_line(winner)))
    return table


def walking_back(report: AttackReport) -> str:
    """Accuracy of the families that need the public encoder at each n; they are not part of the worst case."""
    cells = [
        f"{cell.accuracy:.3f} by {cell.family} (n = {cell.num_examples})"
        if cell.valid
        else f"invalid (n = {cell.num_examples})"
        for cell in report.walking_back
    ]
    return f"{', '.join(cells)} with the public encoder at hand; whoever has it needs no attack, so this is not counted"


def _accuracy(cell: Cell) -> str:
    """Text of a cell; `-` if the family was not re-run because another one did better in the search."""
    return f"{cell.accuracy:.3f}" if cell.valid else "invalid" if cell.failed else "-"
