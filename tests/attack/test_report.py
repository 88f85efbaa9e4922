"""Reports survive files; floors are kept by key; desired scores."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Generator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.attack.report import AttackRecord, AttackReport
from sdm_ray.core.errors import RunError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Split, Task
from sdm_ray.trial.floors import cached_reports, load_report, store_report
from tests.fakes.attack_world import FakeData, TinyTrunk, attack, drain, params_of, quick


@pytest.fixture(scope="module")
def report() -> AttackReport:
    return attack(FakeData())


@pytest.fixture(scope="module")
def failed() -> AttackReport:
    """Every search point diverged: no winner, NaN throughout."""
    settings = quick(learning_rate={"low": 1e30, "high": 1e30}, frozen_probability=0.0, num_examples=(20,))
    return attack(FakeData(), settings)


def building(report: AttackReport) -> Generator[Progress, None, AttackReport]:
    yield Progress("attack", 1, 1, {})
    return report


@pytest.mark.parametrize("which", ["report", "failed"])
def test_json_round_trip(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    original: AttackReport = request.getfixturevalue(which)
    original.write_json(tmp_path / "attack.json")
    text = (tmp_path / "attack.json").read_text()
    assert "NaN" not in text
    restored = AttackReport.read_json(tmp_path / "attack.json")
    assert repr(restored) == repr(original)
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_metrics_are_named_as_declared(report: AttackReport) -> None:
    metrics = report.metrics()
    with_interval = [str(Metric.HARMFUL_WORST_ACCURACY), *map(Metric.harmful_accuracy, (20, 40))]
    assert set(metrics) == {
        *(end(name) for name in with_interval for end in (Metric.low, Metric.high)),
        *map(str, (Metric.HARMFUL_WORST_ACCURACY, Metric.HARMFUL_MEAN_ACCURACY, Metric.HARMFUL_BASE_RATE)),
        *map(str, (Metric.COST_ATTACK_SECONDS, Metric.COST_NUM_FINE_TUNES)),
        *(name(n) for n in (20, 40) for name in (Metric.harmful_accuracy, Metric.harmful_loss)),
        *(name(n) for n in (20, 40) for name in (Metric.harmful_f1, Metric.harmful_information)),
    }
    assert metrics[Metric.HARMFUL_WORST_ACCURACY] == report.worst_accuracy
    for name in with_interval:
        assert metrics[Metric.low(name)] <= metrics[name] <= metrics[Metric.high(name)]
    assert 0.5 <= metrics[Metric.HARMFUL_BASE_RATE] < 0.7
    assert metrics[Metric.HARMFUL_MEAN_ACCURACY] == pytest.approx(
        sum(cell.mean_search_accuracy for cell in report.cells) / 2
    )


def test_parquet_has_a_row_for_each_fine_tune(report: AttackReport, failed: AttackReport, tmp_path: Path) -> None:
    for number, item in enumerate((report, failed)):
        item.write_parquet(tmp_path / f"{number}.parquet")
        table = pq.read_table(tmp_path / f"{number}.parquet")
        assert table.column_names == [field.name for field in dataclasses.fields(AttackRecord)]
        assert table.num_rows == len(item.records)
    schemas = [pq.read_schema(tmp_path / f"{number}.parquet") for number in (0, 1)]
    assert schemas[0].equals(schemas[1])
    rows = pq.read_table(tmp_path / "0.parquet").to_pylist()
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in rows[0].items()}
    assert repr(AttackRecord(**tuples)) == repr(report.records[0])


def test_seconds_are_shared_out(report: AttackReport) -> None:
    total = sum(record.seconds for record in report.records)
    assert 0 < total <= report.seconds
    assert all(record.seconds > 0 for record in report.records)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"format_version": 0}', '{"format_version": 1, "cells": 3}']
)
def test_damaged_floors_are_rebuilt(report: AttackReport, tmp_path: Path, content: str) -> None:
    store_report("key", tmp_path, report)
    path = next((tmp_path / "floors").iterdir())
    path.write_text(content)
    with pytest.raises(RunError, match=path.name):
        AttackReport.read_json(path)
    assert load_report("key", tmp_path) is None
    assert drain(cached_reports({"key": lambda: building(report)}, tmp_path)) == {"key": report}
    assert repr(load_report("key", tmp_path)) == repr(report)


def test_floors_of_something_else_are_rebuilt(report: AttackReport, tmp_path: Path) -> None:
    """A file that is renamed or copied says what it was made from; those of before do not."""
    store_report("theirs", tmp_path, report)
    (theirs,) = (tmp_path / "floors").iterdir()
    ours = theirs.with_name(theirs.name.replace("theirs", "ours"))
    ours.write_bytes(theirs.read_bytes())
    assert load_report("theirs", tmp_path) is not None
    assert load_report("ours", tmp_path) is None
    report.write_json(ours)
    assert repr(load_report("ours", tmp_path)) == repr(report)


def test_floors_are_built_once_for_each_key(report: AttackReport, tmp_path: Path) -> None:
    built: list[str] = []

    def build(name: str) -> Generator[Progress, None, AttackReport]:
        built.append(name)
        return building(report)

    first = drain(cached_reports({"a": lambda: build("a")}, tmp_path))
    again = drain(cached_reports({"b": lambda: build("b"), "a": lambda: build("a again")}, tmp_path))
    assert built == ["a", "b"]
    assert list(again) == ["b", "a"]
    assert repr(first["a"]) == repr(again["a"])
    assert sorted(path.suffix for path in (tmp_path / "floors").iterdir()) == [".json", ".json"]


def test_floors_that_another_process_builds_are_waited_for(
    report: AttackReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is built meanwhile, and nothing twice."""
    monkeypatch.setattr("sdm_ray.trial.cached.time.sleep", lambda _: None)
    theirs = cached_reports({"a": lambda: building(report)}, tmp_path)
    next(theirs)
    built: list[str] = []

    def build(name: str) -> Generator[Progress, None, AttackReport]:
        built.append(name)
        return building(report)

    ours = cached_reports({"a": lambda: build("a"), "b": lambda: build("b")}, tmp_path)
    assert next(ours).stage == "attack"
    assert [next(ours).stage for _ in range(3)] == ["wait"] * 3
    drain(theirs)
    assert set(drain(ours)) == {"a", "b"}
    assert built == ["b"]


@pytest.mark.parametrize("patience", [0, 2])
def test_floors_are_not_waited_for_forever(
    report: AttackReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    monkeypatch.setattr("sdm_ray.trial.cached.PATIENCE_SECONDS", patience)
    monkeypatch.setattr("sdm_ray.trial.cached.time.sleep", lambda _: None)
    stuck = cached_reports({"a": lambda: building(report)}, tmp_path)
    next(stuck)
    stages = [progress.stage for progress in cached_reports({"a": lambda: building(report)}, tmp_path)]
    assert stages == ["wait"] * patience + ["attack"]
    assert load_report("a", tmp_path) is not None


def test_floors_whose_builder_gave_up_are_built(report: AttackReport, tmp_path: Path) -> None:
    given_up = cached_reports({"a": lambda: building(report)}, tmp_path)
    next(given_up)
    given_up.close()
    assert next(cached_reports({"a": lambda: building(report)}, tmp_path)).stage == "attack"


def test_floors_stand_concurrent_writers(report: AttackReport, tmp_path: Path) -> None:
    """Readers never see half a file, and nothing temporary stays behind."""
    seen: list[bool] = []

    def work() -> None:
        for _ in range(5):
            store_report("key", tmp_path, report)
            seen.append(load_report("key", tmp_path) is not None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 20
    assert len(list((tmp_path / "floors").iterdir())) == 1


def test_desired_scores_by_hand() -> None:
    data, trunk = FakeData(num_classes=3), TinyTrunk()
    head = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    accuracy, loss = desired_scores(trunk, params_of(trunk), head, data, Split.TEST)  # type: ignore[arg-type]
    batch = data.batch(data.indices(Split.TEST), Task.DESIRED)
    with torch.no_grad():
        scores = trunk(batch.input_ids, batch.attention_mask) @ head.T
    assert accuracy == pytest.approx(float((scores.argmax(-1) == batch.labels).float().mean()))
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, batch.labels)), rel=1e-5)
    assert not math.isnan(loss)
