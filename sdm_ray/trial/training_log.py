"""Training log and trajectory of a trial, as Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdm_ray.core.files import atomic_path
from sdm_ray.figures.training import AFTER, BEFORE

LOG, TRAJECTORY = "train.parquet", "trajectory.parquet"


def write_log(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a training log to Parquet, atomically: one column per metric, null where a row lacks it.

    Raises:
        RunError: if the file cannot be written.
    """
    names = sorted({name for row in rows for name in row})
    table = pa.table({name: pa.array([row.get(name) for row in rows], pa.float64()) for name in names})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def write_trajectory(start: Mapping[int, float], end: Mapping[int, float], path: Path) -> None:
    """Write both trajectories to Parquet, atomically: `when` (before or after training), `inner_step`, `harmful_loss`.

    Raises:
        RunError: if the file cannot be written.
    """
    rows = [(when, k, loss) for when, losses in ((BEFORE, start), (AFTER, end)) for k, loss in losses.items()]
    when, steps, losses = zip(*rows, strict=True)
    columns = {"when": pa.array(when), "inner_step": pa.array(steps, pa.int64()), "harmful_loss": pa.array(losses)}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
