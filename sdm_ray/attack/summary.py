"""Summary of attacks: one row per model, family and n."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdm_ray.attack.report import AttackReport
from sdm_ray.core.files import atomic_path

SUMMARY = (
    "num_examples", "family", "valid", "reason", "accuracy", "accuracy_low", "accuracy_high", "plain_accuracy",
    "macro_f1", "loss", "raw_loss", "mutual_information", "val_accuracy", "num_missing", "mean_search_accuracy",
    "flattened",
)  # fmt: skip
"""Columns of the summary in addition to `model` and `worst`."""


def write_summary(reports: Mapping[str, AttackReport], path: Path) -> None:
    """Write one row per model, family and n, atomically; `worst` marks the worst family at each n.

    Raises:
        RunError: if the file cannot be written.
    """
    rows = []
    for model, report in reports.items():
        worst = {(cell.num_examples, cell.family) for cell in report.cells}
        for cell in report.family_cells:
            values = {name: getattr(cell, name) for name in SUMMARY}
            rows.append({"model": model, **values, "worst": (cell.num_examples, cell.family) in worst})
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
