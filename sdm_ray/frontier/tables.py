"""Reading and writing of the frontier as Parquet and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import MALFORMED, atomic_path, nan_for_null, null_for_nan, write_json
from sdm_ray.core.parquet import read_parquet
from sdm_ray.frontier.details import Extras, read_details
from sdm_ray.frontier.points import REFERENCE_POINT, Point, hypervolume, near_front, pareto_front

TABLE_VERSION = 3
"""Version of the tables; increase it when columns change."""
PARQUET, JSON = "frontier.parquet", "frontier.json"
MAX_BYTES = 1 << 30
"""Most bytes in memory for a table: one with 10 000 points takes 20 MB."""
_FIELDS = ("trial_id", "method", "desired", "harmful", "feasible", "is_reference", "superseded")
_DERIVED = ("on_front", "near_front")
_INTERVALS = ("desired_interval", "harmful_interval")


def write_tables(
    points: Sequence[Point],
    folder: Path,
    *,
    extras: Extras | None = None,
) -> tuple[Path, Path]:
    """Write `frontier.parquet` (one row per point, one column per metric) and `frontier.json`, atomically.

    Args:
        points: all points.
        folder: target folder.
        extras: additional contents of `frontier.json`.

    Returns:
        Paths of both.

    Raises:
        RunError: if the folder cannot be written.
    """
    rows = _rows(points)
    table_path, json_path = folder / PARQUET, folder / JSON
    with atomic_path(table_path) as temporary:
        pq.write_table(_table(rows), temporary)
    write_json(json_path, _document(points, rows, extras))
    return table_path, json_path


def frontier_document(points: Sequence[Point], extras: Extras | None = None) -> dict[str, Any]:
    """Contents of `frontier.json` as plain values."""
    return _document(points, _rows(points), extras)


def _rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    front = {id(point) for point in pareto_front(points)}
    near = {id(point) for point in near_front(points)}
    return [_row(point, on_front=id(point) in front, near_front=id(point) in near) for point in points]


def _document(points: Sequence[Point], rows: list[dict[str, Any]], extras: Extras | None) -> dict[str, Any]:
    extras = extras or Extras()
    known = {name: null_for_nan(one.to_json()) for name, one in extras.details.items()}
    document = {
        "version": TABLE_VERSION,
        "directions": {"desired": "maximize", "harmful": "minimize"},
        "reference_point": {"desired": REFERENCE_POINT[0], "harmful": REFERENCE_POINT[1]},
        "hypervolume": hypervolume(points),
        "importances": {name: dict(shares) for name, shares in extras.importances.items()},
        "points": [null_for_nan(row) for row in rows],
    }
    return document | {"details": known} if known else document


def read_tables(folder: Path) -> list[Point]:
    """Read the points written by `write_tables`, in the same order.

    Raises:
        UsageError: if there is no table in the folder.
        RunError: if it is damaged or was written by another version.
    """
    path = folder / PARQUET
    if not path.is_file():
        raise UsageError(f"{path} does not exist; name the folder of a sweep that has finished at least one trial")
    try:
        table = read_parquet(path, max_bytes=MAX_BYTES)
        version = int((table.schema.metadata or {}).get(b"sdm_ray_table_version", b"0"))
        if version != TABLE_VERSION:
            raise RunError(
                f"{path} is of table version {version}, this sdm-ray reads version {TABLE_VERSION}; "
                "run `sdm-ray sweep --resume` to write it anew"
            )
        return [_point(row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, *MALFORMED) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} is damaged ({reason}); delete it and run `sdm-ray sweep --resume` to write it anew"
        ) from None


def read_extras(folder: Path) -> Extras:
    """Read the extras written by `write_tables`; empty if there are none."""
    try:
        document = json.loads((folder / JSON).read_text(encoding="utf-8"))
        return Extras(importances=_importances(document), details=read_details(document.get("details")))
    except (OSError, *MALFORMED):
        return Extras()


def _importances(document: dict[str, Any]) -> dict[str, dict[str, float]]:
    try:
        values = document["importances"]
        return {str(name): {str(key): float(share) for key, share in shares.items()} for name, shares in values.items()}
    except MALFORMED:
        return {}


def _row(point: Point, *, on_front: bool, near_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(point, name) for name in _FIELDS}
    row |= {"on_front": on_front, "near_front": near_front}
    for name in _INTERVALS:
        low, high = getattr(point, name) or (None, None)
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row | {"params": point.params, "further": point.further, "metrics": point.metrics}


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    kinds = {"trial_id": pa.string(), "method": pa.string(), "feasible": pa.bool_()}
    kinds |= {"is_reference": pa.bool_(), "superseded": pa.bool_()}
    columns: dict[str, pa.Array] = {}
    for name in (*_FIELDS, *_DERIVED, *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high"))):
        kind = pa.bool_() if name in _DERIVED else kinds.get(name, pa.float64())
        columns[name] = pa.array([row[name] for row in rows], kind)
    columns["params"] = pa.array([json.dumps(null_for_nan(row["params"]), sort_keys=True) for row in rows], pa.string())
    columns["further"] = pa.array([json.dumps(null_for_nan(row["further"])) for row in rows], pa.string())
    for metric in sorted({name for row in rows for name in row["metrics"]}):
        columns[metric] = pa.array([row["metrics"].get(metric) for row in rows], pa.float64())
    return pa.table(columns).replace_schema_metadata({"sdm_ray_table_version": str(TABLE_VERSION)})


def _point(row: dict[str, Any]) -> Point:
    values = {name: row.pop(name) for name in _FIELDS}
    for name in _DERIVED:
        row.pop(name, None)
    for name in _INTERVALS:
        low, high = row.pop(f"{name}_low"), row.pop(f"{name}_high")
        values[name] = None if low is None else (low, high)
    params, further = json.loads(row.pop("params")), json.loads(row.pop("further"))
    values["further"] = nan_for_null(further)
    return Point(**values, params=params, metrics={name: value for name, value in row.items() if value is not None})
