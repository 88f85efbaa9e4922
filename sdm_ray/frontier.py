"""The trade-off between desired and harmful accuracy: dominance, hypervolume, selection rules, tables on disk.

Everywhere here *desired* is maximised and *harmful* is minimised. References (pretrained, random, tuned, AC) are drawn
beside the frontier and never belong to it; nor do infeasible trials and trials with a missing or non-finite objective.
"""

from __future__ import annotations

import bisect
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import atomic_path, write_json
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult

Rule = Literal["constrained", "knee", "weighted", "trial"]
REFERENCE_POINT = (0.0, 1.0)
"""Desired 0 and harmful 1, the worst that either share can be: hypervolumes of any two sweeps can be compared."""
NUM_BOOTSTRAP = 1000
"""Draws of the bootstrap."""
TABLE_VERSION = 3
"""Version of the tables; a change of columns is a new one."""
PARQUET, JSON = "frontier.parquet", "frontier.json"
_FIELDS = ("trial_id", "method", "desired", "harmful", "feasible", "is_reference", "superseded")
_DERIVED = ("on_front", "near_front")
_INTERVALS = ("desired_interval", "harmful_interval")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial as the frontier sees it."""

    trial_id: str
    method: str
    desired: float
    """Maximised; NaN where it was not measured."""
    harmful: float
    """Minimised; NaN where it was not measured."""
    feasible: bool = True
    """Completed, within the sweep's constraint, and passed by the audit."""
    params: dict[str, Any] = field(default_factory=dict)
    """The searched settings by dotted path."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All metrics of the trial."""
    is_reference: bool = False
    superseded: bool = False
    """Attacked with a smaller budget than the finalists of its sweep: drawn, but not compared with them."""
    further: dict[str, float] = field(default_factory=dict)
    """Further objectives by name, turned so that less is better."""
    desired_interval: tuple[float, float] | None = None
    """95 % interval of `desired`."""
    harmful_interval: tuple[float, float] | None = None
    """95 % interval of `harmful`."""

    @property
    def eligible(self) -> bool:
        """Whether it may stand on the front."""
        measured = all(map(math.isfinite, (self.desired, self.harmful, *self.further.values())))
        return self.feasible and measured and not self.is_reference and not self.superseded


def point_from_result(
    result: TrialResult,
    *,
    is_reference: bool = False,
    desired_metric: str = Metric.DESIRED_ACCURACY,
    harmful_metric: str = Metric.HARMFUL_WORST_ACCURACY,
    further: Mapping[str, float] | None = None,
) -> Point:
    """A trial's result as a point; a missing objective becomes NaN and so never stands on the front.

    Args:
        result: the trial.
        is_reference: whether it is a reference.
        desired_metric: what is maximised.
        harmful_metric: what is minimised.
        further: metrics of further objectives, to 1 where they are minimised and -1 where they are maximised.
    """
    return Point(
        trial_id=result.trial_id,
        method=result.method,
        desired=result.metrics.get(desired_metric, math.nan),
        harmful=result.metrics.get(harmful_metric, math.nan),
        feasible=result.status is Status.COMPLETE and result.metrics.get(Metric.AUDIT_PASSED, 1.0) != 0.0,
        params=dict(result.params),
        metrics=dict(result.metrics),
        is_reference=is_reference,
        further={name: sign * result.metrics.get(name, math.nan) for name, sign in (further or {}).items()},
        desired_interval=_interval(result.metrics, desired_metric),
        harmful_interval=_interval(result.metrics, harmful_metric),
    )


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point is at least as good as, by rising desired accuracy.

    Of points with equal objectives the first one given stands for all. O(N log N) for two objectives; further ones are
    compared by moocore.
    """
    ranked = sorted((point for point in points if point.eligible), key=lambda point: (-point.desired, point.harmful))
    if any(point.further for point in ranked):
        return _front_of_many(ranked)
    front: list[Point] = []
    for point in ranked:
        if not front or point.harmful < front[-1].harmful:
            front.append(point)
    return front[::-1]


def with_point(front: list[Point], point: Point) -> list[Point]:
    """The front of a front's points and one more; for two objectives it is found without looking at all of them.

    Args:
        front: what `pareto_front` gave; it is not changed.
        point: any point.
    """
    if not point.eligible:
        return front
    if point.further or any(other.further for other in front[:1]):
        return pareto_front([*front, point])
    # Along the front both rise: what is as desired or more begins at `at`, the least harmful first.
    at = bisect.bisect_left(front, point.desired, key=lambda other: other.desired)
    if at < len(front) and front[at].harmful <= point.harmful:
        return front
    first = bisect.bisect_left(front, point.harmful, hi=at, key=lambda other: other.harmful)
    last = at + (at < len(front) and front[at].desired == point.desired)
    return [*front[:first], point, *front[last:]]


def near_front(points: Sequence[Point]) -> list[Point]:
    """Points off the front that their interval does not tell from it: at its favourable ends nothing dominates them.

    For two objectives; a point without an interval is told from the front by its values alone, and is none of these.
    """
    front = pareto_front(points)
    fronted = {id(point) for point in front}
    near = []
    for point in points:
        intervals = (point.desired_interval, point.harmful_interval)
        if not point.eligible or id(point) in fronted or intervals == (None, None) or point.further:
            continue
        desired = point.desired if point.desired_interval is None else point.desired_interval[1]
        harmful = point.harmful if point.harmful_interval is None else point.harmful_interval[0]
        at = bisect.bisect_left(front, desired, key=lambda other: other.desired)
        if at == len(front) or front[at].harmful > harmful:
            near.append(point)
    return near


def _front_of_many(ranked: list[Point]) -> list[Point]:
    import moocore

    values = np.array([(-point.desired, point.harmful, *point.further.values()) for point in ranked])
    kept = moocore.is_nondominated(values, keep_weakly=False)
    return [point for point, keep in zip(ranked, kept, strict=True) if keep][::-1]


def hypervolume(points: Iterable[Point], reference: tuple[float, float] = REFERENCE_POINT) -> float:
    """Area that the front dominates, bounded by `reference` = (desired, harmful); 0 without a front.

    Computed by moocore. With the default reference it lies in [0, 1]; points that do not dominate the reference add
    nothing. Further objectives decide which points stand on the front, and add nothing to the area.
    """
    front = pareto_front(points)
    if not front:
        return 0.0
    import moocore

    values = np.array([(point.desired, point.harmful) for point in front])
    return float(moocore.hypervolume(values, ref=list(reference), maximise=[True, False]))


def compare(first: Sequence[Point], second: Sequence[Point], *, seed: int = 0) -> tuple[float, float, float]:
    """By how much the hypervolume of the second sweep exceeds that of the first: difference, 95 % interval.

    The interval is the percentile bootstrap over trials (Efron 1979), each sweep's drawn apart: it says what another
    draw of as many points by the same search might have found, not how sure each accuracy is.

    Args:
        first: all points of a sweep.
        second: all points of another.
        seed: of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    difference = hypervolume(second) - hypervolume(first)
    draws = []
    for _ in range(NUM_BOOTSTRAP):
        volumes = []
        for points in (first, second):
            trials = [point for point in points if not point.is_reference]
            chosen = generator.integers(0, max(1, len(trials)), len(trials))
            volumes.append(hypervolume([trials[index] for index in chosen]))
        draws.append(volumes[1] - volumes[0])
    low, high = np.quantile(draws, [0.025, 0.975])
    return difference, float(low), float(high)


def select(
    points: Sequence[Point],
    *,
    rule: Rule = "constrained",
    min_desired: float | None = None,
    desired_weight: float = 0.5,
    trial_id: str | None = None,
) -> Point:
    """Pick one point.

    Args:
        points: all points of a sweep.
        rule: `constrained`: the lowest harmful value with desired at least `min_desired`. `knee`: the point of the
            front that lies furthest from the line between its two ends, both objectives scaled to the front's range
            (Das 1999); of a front of two points the one with the larger desired - harmful. `weighted`: the largest
            `desired_weight * desired - (1 - desired_weight) * harmful`. `trial`: the trial named `trial_id`, which
            may be a reference.
        min_desired: for `constrained`; None sets no bound.
        desired_weight: for `weighted`, in [0, 1].
        trial_id: for `trial`.

    Raises:
        UsageError: when no point qualifies; it says why and what there is.
    """
    if rule == "trial":
        return _by_trial_id(points, trial_id)
    front = pareto_front(points)
    if not front:
        raise UsageError(f"the frontier is empty: {_why_empty(points)}")
    if rule == "knee":
        return _knee(front)
    if rule == "weighted":
        if not 0 <= desired_weight <= 1:
            raise UsageError(f"desired_weight must lie in [0, 1], got {desired_weight:g}")
        return max(front, key=lambda point: desired_weight * point.desired - (1 - desired_weight) * point.harmful)
    if rule != "constrained":
        raise UsageError(f"unknown rule {rule!r}; choose constrained, knee, weighted or trial")
    qualified = [point for point in front if min_desired is None or point.desired >= min_desired]
    if not qualified:
        raise UsageError(
            f"no feasible trial has a desired value of at least {min_desired:g}: the best is {front[-1].desired:.4f} "
            f"(trial {front[-1].trial_id}); lower the bound"
        )
    return qualified[0]


def write_tables(
    points: Sequence[Point], folder: Path, *, importances: Mapping[str, Mapping[str, float]] | None = None
) -> tuple[Path, Path]:
    """Write `frontier.parquet` (a row for each point, a column for each metric) and `frontier.json`, atomically.

    Returns:
        The paths of both.

    Raises:
        RunError: when the folder cannot be written.
    """
    front = {id(point) for point in pareto_front(points)}
    near = {id(point) for point in near_front(points)}
    rows = [_row(point, on_front=id(point) in front, near_front=id(point) in near) for point in points]
    table_path, json_path = folder / PARQUET, folder / JSON
    with atomic_path(table_path) as temporary:
        pq.write_table(_table(rows), temporary)
    write_json(
        json_path,
        {
            "version": TABLE_VERSION,
            "directions": {"desired": "maximize", "harmful": "minimize"},
            "reference_point": {"desired": REFERENCE_POINT[0], "harmful": REFERENCE_POINT[1]},
            "hypervolume": hypervolume(points),
            "importances": {name: dict(shares) for name, shares in (importances or {}).items()},
            "points": [_finite(row) for row in rows],
        },
    )
    return table_path, json_path


def read_tables(folder: Path) -> list[Point]:
    """The points that `write_tables` wrote, in the same order.

    Raises:
        UsageError: when there is no table in the folder.
        RunError: when it is damaged or was written by another version.
    """
    path = folder / PARQUET
    if not path.is_file():
        raise UsageError(f"{path} does not exist; name the folder of a sweep that has finished at least one trial")
    try:
        table = pq.read_table(path)
        version = int((table.schema.metadata or {}).get(b"sdm_ray_table_version", b"0"))
        if version != TABLE_VERSION:
            raise RunError(
                f"{path} is of table version {version}, this sdm-ray reads version {TABLE_VERSION}; "
                "run `sdm-ray sweep --resume` to write it anew"
            )
        return [_point(row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} is damaged ({reason}); delete it and run `sdm-ray sweep --resume` to write it anew"
        ) from None


def read_importances(folder: Path) -> dict[str, dict[str, float]]:
    """Shares of the searched settings by objective, as `write_tables` wrote them; empty where it wrote none."""
    try:
        values = json.loads((folder / JSON).read_text(encoding="utf-8"))["importances"]
        return {str(name): {str(key): float(share) for key, share in shares.items()} for name, shares in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _interval(metrics: dict[str, float], name: str) -> tuple[float, float] | None:
    low, high = metrics.get(Metric.low(name), math.nan), metrics.get(Metric.high(name), math.nan)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _by_trial_id(points: Sequence[Point], trial_id: str | None) -> Point:
    if not trial_id:
        raise UsageError("rule 'trial' needs the id of a trial")
    for point in points:
        if point.trial_id == trial_id:
            return point
    known = [point.trial_id for point in points]
    close = difflib.get_close_matches(trial_id, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {len(known)} trials"
    raise UsageError(f"no trial {trial_id!r} in this sweep; {hint}")


def _why_empty(points: Sequence[Point]) -> str:
    trials = [point for point in points if not point.is_reference]
    if not trials:
        return "no trial but the references has finished"
    infeasible = sum(not point.feasible for point in trials)
    return (
        f"of {len(trials)} trials {infeasible} failed, were stopped or are infeasible, and {len(trials) - infeasible} "
        "lack a finite objective"
    )


def _knee(front: list[Point]) -> Point:
    values = np.array([(point.desired, -point.harmful) for point in front])
    span = np.ptp(values, axis=0)
    if len(front) == 1 or not span.all():
        return front[-1]
    scaled = (values - values.min(axis=0)) / span
    if len(front) == 2:
        return min(front, key=lambda point: (point.harmful - point.desired, -point.desired))
    return front[int(np.argmax(scaled.sum(axis=1)))]


def _row(point: Point, *, on_front: bool, near_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(point, name) for name in _FIELDS}
    row |= {"on_front": on_front, "near_front": near_front}
    for name in _INTERVALS:
        low, high = getattr(point, name) or (None, None)
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row | {"params": point.params, "further": point.further, "metrics": point.metrics}


def _finite(value: Any) -> Any:
    """NaN and infinities as null, the only form that every JSON reader takes."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    kinds = {"trial_id": pa.string(), "method": pa.string(), "feasible": pa.bool_()}
    kinds |= {"is_reference": pa.bool_(), "superseded": pa.bool_()}
    columns: dict[str, pa.Array] = {}
    for name in (*_FIELDS, *_DERIVED, *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high"))):
        kind = pa.bool_() if name in _DERIVED else kinds.get(name, pa.float64())
        columns[name] = pa.array([row[name] for row in rows], kind)
    columns["params"] = pa.array([json.dumps(_finite(row["params"]), sort_keys=True) for row in rows], pa.string())
    columns["further"] = pa.array([json.dumps(_finite(row["further"])) for row in rows], pa.string())
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
    values["further"] = {name: math.nan if value is None else value for name, value in further.items()}
    return Point(**values, params=params, metrics={name: value for name, value in row.items() if value is not None})
