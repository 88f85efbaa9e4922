"""Dominance, hypervolume and selection against brute force and closed forms; tables that survive and complain."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point, compare, hypervolume, near_front, pareto_front, point_from_result, with_point
from sdm_ray.frontier.select import select
from sdm_ray.frontier.tables import TABLE_VERSION, read_tables, write_tables
from sdm_ray.sweep.frontier_writer import FrontierWriter


def point(name: str, desired: float, harmful: float, **changes: Any) -> Point:
    return Point(trial_id=name, method=changes.pop("method", "mlac"), desired=desired, harmful=harmful, **changes)


SHARES = st.integers(0, 8).map(lambda value: value / 8)
CLOUDS = st.lists(st.tuples(SHARES, SHARES), max_size=25)


@given(CLOUDS)
def test_the_front_is_what_nothing_dominates(cloud: list[tuple[float, float]]) -> None:
    points = [point(str(index), *values) for index, values in enumerate(cloud)]
    dominated = {
        b for b in set(cloud) for a in set(cloud) if a != b and a[0] >= b[0] and a[1] <= b[1]
    }  # fmt: skip
    front = pareto_front(points)
    assert [(p.desired, p.harmful) for p in front] == sorted(set(cloud) - dominated)
    for p in front:
        first = next(q for q in points if (q.desired, q.harmful) == (p.desired, p.harmful))
        assert p is first, "of equal points the first one stands for all"


@given(CLOUDS)
def test_the_front_agrees_with_moocore(cloud: list[tuple[float, float]]) -> None:
    values = np.array(cloud).reshape(-1, 2)
    points = [point(str(index), *value) for index, value in enumerate(cloud)]
    wanted = moocore.is_nondominated(values, maximise=[True, False]).sum() if cloud else 0
    assert len(pareto_front(points)) == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans()), max_size=25))
def test_a_front_grows_point_by_point(cloud: list[tuple[int, int, bool]]) -> None:
    """Small integers make ties; of equal points the first one stands."""
    points = [
        Point(trial_id=str(index), method="mlac", desired=desired / 8, harmful=harmful / 8, feasible=feasible)
        for index, (desired, harmful, feasible) in enumerate(cloud)
    ]
    front: list[Point] = []
    for point in points:
        front = with_point(front, point)
    assert [point.trial_id for point in front] == [point.trial_id for point in pareto_front(points)]


def test_a_point_whose_interval_reaches_the_front_is_told(tmp_path: Path) -> None:
    points = [
        point("front", 0.9, 0.5),
        point("wide", 0.88, 0.56, harmful_interval=(0.49, 0.63)),
        point("narrow", 0.88, 0.56, harmful_interval=(0.54, 0.58)),
        point("desired", 0.88, 0.56, desired_interval=(0.85, 0.91)),
        point("bare", 0.899, 0.501),
        point("infeasible", 0.88, 0.56, harmful_interval=(0.3, 0.8), feasible=False),
        point("superseded", 0.88, 0.56, harmful_interval=(0.3, 0.8), superseded=True),
    ]
    assert [near.trial_id for near in near_front(points)] == ["wide", "desired"]
    write_tables(points, tmp_path)
    table = pq.read_table(tmp_path / "frontier.parquet").to_pylist()
    assert [row["trial_id"] for row in table if row["near_front"]] == ["wide", "desired"]
    assert read_tables(tmp_path) == points


@given(st.lists(st.tuples(SHARES, SHARES, SHARES), max_size=20))
def test_a_third_objective_counts(cloud: list[tuple[float, float, float]]) -> None:
    points = [point(str(index), a, b, further={"cost": c}) for index, (a, b, c) in enumerate(cloud)]
    better = [
        (a, b) for a in set(cloud) for b in set(cloud) if a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]
    ]
    wanted = set(cloud) - {loser for _, loser in better}
    front = pareto_front(points)
    assert {(p.desired, p.harmful, p.further["cost"]) for p in front} == wanted
    assert len(front) == len(wanted)
    assert [p.desired for p in front] == sorted(p.desired for p in front)
    assert not pareto_front([point("unmeasured", 1.0, 0.0, further={"cost": math.nan})])


def test_infeasible_references_and_unmeasured_points_never_stand_on_the_front() -> None:
    good = point("good", 0.5, 0.5)
    others = [
        point("infeasible", 1.0, 0.0, feasible=False),
        point("reference", 1.0, 0.0, is_reference=True),
        point("nan", math.nan, 0.0),
        point("inf", math.inf, 0.0),
        point("unmeasured", 1.0, math.nan),
    ]
    assert pareto_front([*others, good]) == [good]
    assert hypervolume([*others, good]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("cloud", "wanted"),
    [
        ([], 0.0),
        ([(1.0, 0.0)], 1.0),
        ([(0.9, 0.6)], 0.36),
        ([(0.9, 0.6), (0.5, 0.2)], 0.9 * 0.4 + 0.5 * 0.4),
        ([(0.9, 0.6), (0.5, 0.2), (0.5, 0.7)], 0.9 * 0.4 + 0.5 * 0.4),
        ([(0.9, 0.6), (0.9, 0.6)], 0.36),
        ([(0.0, 0.3)], 0.0),
    ],
)
def test_hypervolume_in_closed_form(cloud: list[tuple[float, float]], wanted: float) -> None:
    assert hypervolume([point(str(index), *values) for index, values in enumerate(cloud)]) == pytest.approx(wanted)


def test_hypervolume_of_a_staircase_is_the_sum_of_its_steps() -> None:
    steps = 50
    points = [point(str(i), (i + 1) / steps, i / steps) for i in range(steps)]
    wanted = sum((1 - i / steps) / steps for i in range(steps))
    assert hypervolume(points) == pytest.approx(wanted)


def test_hypervolume_from_another_reference_ignores_points_beyond_it() -> None:
    points = [point("a", 0.9, 0.6), point("b", 0.95, 0.9)]
    assert hypervolume(points, (0.8, 0.7)) == pytest.approx(0.1 * 0.1)


FRONT = [point("low", 0.90, 0.55), point("mid", 0.95, 0.58), point("high", 0.96, 0.80)]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"min_desired": 0.93}, "mid"),
        ({"min_desired": 0.95}, "mid"),
        ({"min_desired": None}, "low"),
        ({"rule": "knee"}, "mid"),
        ({"rule": "weighted", "desired_weight": 1.0}, "high"),
        ({"rule": "weighted", "desired_weight": 0.0}, "low"),
        ({"rule": "weighted", "desired_weight": 0.5}, "mid"),
        ({"rule": "trial", "trial_id": "ref"}, "ref"),
    ],
)
def test_rules_pick(arguments: dict[str, Any], wanted: str) -> None:
    points = [point("bad", 0.94, 0.70), *FRONT, point("ref", 0.99, 0.10, is_reference=True)]
    assert select(points, **arguments).trial_id == wanted


def test_the_constrained_rule_equals_brute_force() -> None:
    generator = np.random.default_rng(0)
    points = [point(str(i), *generator.random(2)) for i in range(200)]
    for bound in (0.1, 0.5, 0.9):
        wanted = min((p for p in points if p.desired >= bound), key=lambda p: p.harmful)
        assert select(points, min_desired=bound) == wanted


def test_the_knee_of_a_quarter_circle_is_its_middle() -> None:
    angles = np.linspace(0, np.pi / 2, 21)
    points = [point(str(i), float(np.cos(a)) * 0.1 + 0.8, 1 - float(np.sin(a))) for i, a in enumerate(angles)]
    assert select(points, rule="knee").trial_id == "10"


@pytest.mark.parametrize(("count", "wanted"), [(1, "low"), (2, "mid")])
def test_the_knee_of_a_short_front(count: int, wanted: str) -> None:
    assert select(FRONT[:count], rule="knee").trial_id == wanted


@pytest.mark.parametrize(
    ("points", "arguments", "words"),
    [
        (FRONT, {"min_desired": 0.99}, r"at least 0\.99: the best is 0\.9600 \(trial high\)"),
        ([], {}, "no trial but the references has finished"),
        ([point("a", 0.9, 0.5, feasible=False), point("b", math.nan, 0.5)], {}, "of 2 trials 1 failed"),
        (FRONT, {"rule": "trial", "trial_id": "hihg"}, "did you mean high"),
        (FRONT, {"rule": "trial", "trial_id": "zzz"}, "there are 3 trials"),
        (FRONT, {"rule": "trial"}, "needs the id of a trial"),
        (FRONT, {"rule": "weighted", "desired_weight": 2.0}, r"must lie in \[0, 1\], got 2"),
        (FRONT, {"rule": "best"}, "unknown rule 'best'"),
    ],
)
def test_a_rule_that_picks_nothing_says_why(points: list[Point], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        select(points, **arguments)


def test_a_result_becomes_a_point_with_its_intervals() -> None:
    worst = str(Metric.HARMFUL_WORST_ACCURACY)
    result = TrialResult(
        trial_id="t0", config_hash="abc", method="mlac", seed=0, status=Status.COMPLETE, output_dir=Path(),
        metrics={"desired/accuracy": 0.9, worst: 0.6, Metric.low(worst): 0.58, Metric.high(worst): 0.63},
        params={"train.learning_rate": 1e-3},
    )  # fmt: skip
    made = point_from_result(result)
    assert (made.desired, made.harmful, made.feasible) == (0.9, 0.6, True)
    assert made.harmful_interval == (0.58, 0.63)
    assert made.desired_interval is None
    for status in (Status.FAILED, Status.STOPPED, Status.INFEASIBLE):
        changed = TrialResult(**{**vars(result), "status": status, "metrics": {}})
        assert not point_from_result(changed).feasible
        assert math.isnan(point_from_result(changed).harmful)


TABLE = [
    point("t0", 0.95, 0.6, params={"train.learning_rate": 1e-3, "x": [1, 2]}, metrics={"desired/accuracy": 0.95},
          harmful_interval=(0.5, 0.7)),
    point("t1", 0.90, 0.7, metrics={"harmful/n50/accuracy": 0.7}),
    point("ref", 0.97, 0.9, is_reference=True, method="tuned"),
]  # fmt: skip


def test_tables_read_back_as_they_were_written(tmp_path: Path) -> None:
    table, document = write_tables(TABLE, tmp_path)
    assert read_tables(tmp_path) == TABLE
    columns = pq.read_table(table).to_pydict()
    assert columns["on_front"] == [True, False, False]
    assert columns["harmful/n50/accuracy"] == [None, 0.7, None]
    values = json.loads(document.read_text())
    assert values["version"] == TABLE_VERSION
    assert values["hypervolume"] == pytest.approx(0.95 * 0.4)
    assert values["points"][0]["params"] == {"train.learning_rate": 1e-3, "x": [1, 2]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frontier.json", "frontier.parquet"]


def test_unmeasured_values_are_nan_in_parquet_and_null_in_json(tmp_path: Path) -> None:
    write_tables([point("t0", math.nan, math.nan, metrics={"desired/accuracy": math.nan})], tmp_path)
    (back,) = read_tables(tmp_path)
    assert math.isnan(back.desired)
    assert math.isnan(back.metrics["desired/accuracy"])
    document = json.loads((tmp_path / "frontier.json").read_text(), parse_constant=pytest.fail)
    assert document["points"][0]["desired"] is None


def test_an_empty_sweep_has_tables_too(tmp_path: Path) -> None:
    write_tables([], tmp_path)
    assert read_tables(tmp_path) == []


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0.0, 0.999))
def test_a_truncated_table_is_one_clear_error(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    table, _ = write_tables(TABLE, folder)
    content = table.read_bytes()
    table.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunError, match=r"frontier\.parquet is damaged .*delete it"):
        read_tables(folder)


def test_a_missing_table_and_another_version_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; name the folder of a sweep"):
        read_tables(tmp_path)
    table, _ = write_tables(TABLE, tmp_path)
    pq.write_table(pq.read_table(table).replace_schema_metadata({"sdm_ray_table_version": "99"}), table)
    with pytest.raises(RunError, match=f"table version 99, this sdm-ray reads version {TABLE_VERSION}"):
        read_tables(tmp_path)


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(TABLE, tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_tables(TABLE[:1], tmp_path)
    assert read_tables(tmp_path) == TABLE


def test_ten_thousand_points_take_little_time(tmp_path: Path) -> None:
    import time

    generator = np.random.default_rng(0)
    points = [
        point(str(i), *generator.random(2), metrics={f"m{j}": 0.5 for j in range(20)}, params={"a": 1})
        for i in range(10_000)
    ]
    write_tables(points, tmp_path)
    start = time.process_time()
    read = read_tables(tmp_path)
    hypervolume(read)
    assert time.process_time() - start < 2


def test_sweeps_are_compared_by_hypervolume_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    few, many = ([point(str(i), *rng.uniform(0.4, 0.6, 2)) for i in range(n)] for n in (5, 200))
    reference = [point("tuned", 1.0, 0.0, is_reference=True)]
    difference, low, high = compare(few + reference, many + reference)
    assert difference == pytest.approx(hypervolume(many) - hypervolume(few))
    assert 0 < low <= difference <= high
    assert compare(many, many)[0] == 0
    assert compare(many, many)[1] < 0 < compare(many, many)[2]
    assert compare(few, many, seed=1)[1:] != (low, high)
    assert compare([], many)[0] == hypervolume(many)


def test_a_tracker_gets_the_files_while_the_sweep_runs_and_not_too_often(tmp_path: Path) -> None:
    published: list[list[Path]] = []
    writer = FrontierWriter(tmp_path, warn=pytest.fail, pause_seconds=0.0, publish=published.append)
    for name in ("t0", "t1"):
        writer.files = []
        writer.update([point(name, 0.9, 0.5)])
        deadline = time.monotonic() + 60
        while not writer.files:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    writer.close()
    assert len(published) == 1, "the second time came within the minute"
    assert {file.name for file in published[0]} >= {
        "frontier.parquet",
        "frontier.json",
        "frontier.png",
        "frontier.html",
    }
