"""A sweep that ends at any of its writes loses nothing and doubles nothing: its points are those of an undisturbed one.

Searcher, ledger, journal, delivery, checkpoints and results are the real ones. What is delivered goes to a store that
takes a record twice as MLflow does, and pictures are not drawn.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core import files
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import write_text
from sdm_ray.core.lock import InUse
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import read_tables
from sdm_ray.sweep import SilentView, SweepOutcome, run_sweep
from sdm_ray.tracking import mlflow as mlflow_module
from tests.fakes import sweep as sweep_fakes
from tests.fakes.crash import Death, Killed, death

pytestmark = [
    pytest.mark.usefixtures("in_process", "light"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
POINTS = [{sweep_fakes.RATE: 1e-3, sweep_fakes.WEIGHT: weight} for weight in (0.5, 1.0, 3.0)]
"""All points that the sweep tries: a sampler would draw others after a resume, for it is seeded anew there."""
CHANGES = {
    "references": "[tuned]", "search__num_trials": str(len(POINTS)),
    "search__points": json.dumps(POINTS), "search__sampler": "tpe",
    "search__max_desired_drop": "0.1", "resources__max_concurrent_trials": "2", "tracking__enabled": "true",
}  # fmt: skip


class Store:
    """A sink that keeps what it is given, once: a stand-in for `MlflowSink`, shared by the drivers of a folder."""

    kept: dict[str, dict[str, set[str]]] = {}
    experiment_id = "0"

    def __init__(self, uri: str, experiment: str, location: str | None, sweep_id: str, **options: Any) -> None:
        self.runs = Store.kept.setdefault(sweep_id, {})
        self.sweep_id = sweep_id

    def connect(self) -> None: ...

    def wait_connected(self, seconds: float) -> bool:
        return True

    def trial_runs(self) -> list[str]:
        return sorted(self.runs)

    def lone_run(self) -> None: ...

    def run_id(self, trial_id: str) -> str | None:
        return trial_id if trial_id in self.runs else None

    def apply(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            run = self.runs.setdefault(record["trial"], {})
            run.setdefault(record["call"], set()).add(json.dumps(record, sort_keys=True))


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pictures, no MLflow, no waiting for what a dead thread should deliver."""
    monkeypatch.setattr(mlflow_module, "MlflowSink", Store)
    monkeypatch.setattr(mlflow_module, "prepare_mlflow", lambda: None)
    monkeypatch.setattr(mlflow_module, "environment_tags", dict)
    monkeypatch.setattr(mlflow_module, "CLOSE_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    drawn = {"frontier.frontier_figure": 1, "kept.kept_figure": 1, "page.write_page": 1}
    for name in drawn:
        monkeypatch.setattr(f"sdm_ray.figures.{name}", lambda points, path, **options: write_text(path, "x") or path)
    yield
    Store.kept.clear()


def run(folder: Path, *, resume: bool = False) -> SweepOutcome:
    settings = sweep_fakes.settings(folder, **CHANGES)
    return run_sweep(settings, resume=resume, trial_function="tests.fakes.sweep:kept", view=SilentView())


def run_again(folder: Path) -> SweepOutcome:
    """As a person does: with --resume, and from the beginning where it says that nothing has begun."""
    return run(folder, resume=(folder / "fake" / "sweep.yaml").exists())


def facts(points: list[Point]) -> list[tuple[Any, ...]]:
    return [
        (point.trial_id, point.params, point.metrics, point.desired, point.harmful, point.feasible) for point in points
    ]


def check(outcome: SweepOutcome, wanted: SweepOutcome, case: str) -> None:
    """Nothing is lost, nothing is doubled, and everything is equal."""
    assert not outcome.interrupted, case
    assert facts(outcome.points) == facts(wanted.points), case
    assert facts(read_tables(outcome.folder)) == facts(read_tables(wanted.folder)), case
    lines = [json.loads(line) for line in (outcome.folder / "trials.jsonl").read_text().splitlines()]
    ended = [line["trial_id"] for line in lines if line["event"] == "result"]
    assert sorted(ended) == sorted(result.trial_id for result in wanted.results), case
    for trial_id in ended:
        assert len(sweep_fakes.events(outcome.folder / "trials" / trial_id, "finished")) <= 1, f"{case}: {trial_id}"
    (kept,) = [Store.kept[path.read_text()] for path in (outcome.folder / "tracking").glob("sweep_id*")]
    for result in wanted.results:
        records = [json.loads(text) for text in kept[result.trial_id].get("finish", ())]
        assert {record["status"] for record in records} == {"FINISHED"}, f"{case}: {result.trial_id} is not tracked"
    left = [path for path in outcome.folder.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert not [path for path in left if "tmp" in path.name], case


def count(folder: Path) -> tuple[SweepOutcome, int]:
    with death() as made:
        return run(folder), made.count


def end_at(folder: Path, at: int, *, torn: bool) -> Death:
    with death(at, torn=torn) as made:
        try:
            run(folder)
        except Killed:
            pass
        except RunError:
            assert made.is_dead
    return made


def try_ends(tmp_path: Path, numbers: list[tuple[int, bool]] | None) -> None:
    wanted, total = count(tmp_path / "undisturbed")
    problems: list[str] = []
    every = [(at, torn) for at in range(1, total + 3) for torn in (False, True)]
    for at, torn in every if numbers is None else [(at % total + 1, torn) for at, torn in numbers]:
        folder = tmp_path / f"{at}-{torn}"
        made = end_at(folder, at, torn=torn)
        case = f"write {at} of {total}{', torn' if torn else ''}: {made.where}"
        try:
            check(run_again(folder), wanted, case)
        except (RunError, UsageError, AssertionError) as error:
            problems.append(f"{case}\n    {type(error).__name__}: {str(error)[:600]}")
        shutil.rmtree(folder)
    assert not problems, "\n".join([f"{len(problems)} problems", *problems])


def test_a_sweep_survives_an_end_at_some_writes(tmp_path: Path) -> None:
    draw = random.Random(0)
    try_ends(tmp_path, [(draw.randrange(1000), torn) for torn in (False, True)])


def try_visits(tmp_path: Path, draw: random.Random, *, num_visits: int) -> None:
    """A second driver comes along at moments of a pseudo-random schedule, and at some of them the first one dies."""
    wanted, total = count(tmp_path / "undisturbed")
    folder, seen = tmp_path / "visited", list[str]()

    def visit() -> None:
        with pytest.raises(InUse, match="is in use by process") as refused:
            run_again(folder)
        seen.append(str(refused.value))

    for at in (draw.randrange(total // 3, total), None):
        with death(at) as made, suppress(Killed):
            made.visits = dict.fromkeys(draw.sample(range(2, total // 3), num_visits), visit)
            outcome = run_again(folder)
    check(outcome, wanted, "visited")
    # All visits of the driver that died, which had made enough writes; the next one may end before its last visits.
    assert len(seen) > num_visits


def test_a_second_driver_is_refused_at_any_moment(tmp_path: Path) -> None:
    try_visits(tmp_path, random.Random(1), num_visits=2)


def try_full_disks(tmp_path: Path, cases: list[tuple[int, int]] | None) -> None:
    """The disk takes no more from one write on, until the sweep has ended; then there is space, and it goes on."""
    with full_from(None) as made:
        wanted = run(tmp_path / "undisturbed")
    total, problems = made[0], list[str]()
    for at, number in [(at, errno.ENOSPC) for at in range(total)] if cases is None else cases:
        folder, case = tmp_path / f"{at}-{number}", f"from write {at % total} of {total}: {os.strerror(number)}"
        try:
            with full_from(at % total, number), suppress(UsageError, RunError):
                first = run(folder)
                assert first.interrupted or len(first.results) == len(wanted.results)
                assert not first.failures
            check(run_again(folder), wanted, case)
        except (RunError, UsageError, AssertionError) as error:
            problems.append(f"{case}\n    {type(error).__name__}: {str(error)[:600]}")
        shutil.rmtree(folder, ignore_errors=True)
    assert not problems, "\n".join([f"{len(problems)} problems", *problems])


@contextmanager
def full_from(at: int | None, number: int = errno.ENOSPC) -> Iterator[list[int]]:
    """Let every write from one on fail with an error of the machine; gives a list with the number of writes."""
    write, made = files._write, [0]

    def fail(file: int, content: bytes | memoryview) -> None:
        made[0] += 1
        if at is not None and made[0] > at:
            raise OSError(number, os.strerror(number))
        write(file, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write", fail)
        yield made


def test_a_sweep_survives_full_disks(tmp_path: Path) -> None:
    draw = random.Random(0)
    try_full_disks(tmp_path, [(draw.randrange(1000), number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_survives_a_disk_that_is_full_from_any_write_on(tmp_path: Path) -> None:
    try_full_disks(tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_second_driver_is_refused_by_many_schedules(tmp_path: Path, seed: int) -> None:
    try_visits(tmp_path, random.Random(seed), num_visits=10)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_sweep_survives_an_end_at_every_write(tmp_path: Path) -> None:
    try_ends(tmp_path, None)
