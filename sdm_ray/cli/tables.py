"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from sdm_ray.attack.evaluate import AttackReport


def attack_table(reports: Mapping[str, AttackReport]) -> Table:
    """Accuracy after the worst attack at each n, with 95 % intervals over the fresh re-runs; a row for each model."""
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
        table.add_row(name, *cells, f"{report.worst_accuracy:.3f}")
    return table
