"""What a person sees: in a wide terminal, in a narrow one, and in a log."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from sdm_ray.config.train import Method
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.points import Point
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.sweep.state.snapshot import Running, Snapshot
from sdm_ray.sweep.view.live import LinesView, LiveView, clock, render, result_line, running_line
from tests.fakes.results import accuracies, trial_result


def result(trial_id: str, status: Status, error: str | None = None) -> TrialResult:
    return trial_result(trial_id, status=status, metrics=accuracies(0.96, 0.8), error=error)


SNAPSHOT = Snapshot(
    name="fake",
    num_trials=12,
    num_references=4,
    num_references_done=2,
    counts={Status.COMPLETE: 3, Status.FAILED: 1, Status.INFEASIBLE: 1, Status.STOPPED: 0},
    references=(result("tuned", Status.COMPLETE), result("random", Status.FAILED, "no")),
    running=(Running(Entry("t0005", "search", "mlac", 5), stage="attack", done=3, total=4, retries=1),),
    front=(Point(trial_id="t0002", method="mlac", desired=0.95, harmful=0.61),),
    elapsed_seconds=65,
    seconds_left=3700,
)


def drawn(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render(SNAPSHOT))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_table_says_everything() -> None:
    text = "\n".join(drawn(200))
    for words in (
        "5/12 trials",
        "1 running",
        "1 failed",
        "1 infeasible",
        "references 2/4",
        "1 min 05 s elapsed",
        "about 1 h 01 min left",
        "tuned",
        "0.960",
        "t0002",
        "0.610",
        "t0005 mlac: attack 75%, started twice",
    ):
        assert words in text


@pytest.mark.parametrize("width", [20, 40, 80])
def test_table_survives_narrow_windows(width: int) -> None:
    lines = drawn(width)
    assert max(len(line) for line in lines) <= width
    if width >= 40:
        assert "0.610" in "\n".join(lines)


@pytest.mark.parametrize(
    ("trial_id", "method", "changes", "line"),
    [
        ("tuned", "tuned", {}, "tuned: starting (its process imports, reads data and encoder)"),
        ("tuned-s1", "tuned", {"stage": "train", "done": 1, "total": 4}, "tuned-s1: train 25%"),
        ("scratch", "scratch", {"stage": "scratch", "done": 1, "total": 4}, "scratch: training from scratch 25%"),
        ("mlac-k4", "mlac", {"stage": "rung"}, "mlac-k4: attack at a rung"),
        (
            "t0001", "mlac", {"stage": "wait", "done": 12, "total": 600},
            "t0001 mlac: waiting for another process that computes the same",
        ),
        ("t0001", "mlac", {"stage": "train", "retries": 2}, "t0001 mlac: train, started 3 times"),
    ],
)  # fmt: skip
def test_a_running_trial_says_what_it_does(trial_id: str, method: Method, changes: dict[str, Any], line: str) -> None:
    assert running_line(Running(Entry(trial_id, "reference", method), **changes)) == line


def test_a_reference_is_named_once_where_it_ends() -> None:
    done = result("tuned", Status.COMPLETE)
    assert result_line(dataclasses.replace(done, method="tuned")).startswith("tuned desired")
    assert result_line(done).startswith("tuned (mlac) desired")


def test_plain_lines_say_what_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    view = LinesView(lines.append)
    monkeypatch.setattr("sdm_ray.sweep.view.live.LINE_SECONDS", 0.0)
    view.update(lambda: SNAPSHOT)
    assert lines[0].startswith("5/12 trials")
    assert lines[1:] == ["  t0005 mlac: attack 75%, started twice"]


def test_lines_view_is_sparse() -> None:
    lines: list[str] = []
    view = LinesView(lines.append)
    view.start("sweep fake")
    for _ in range(100):
        view.update(lambda: SNAPSHOT)
    view.finished(result("t0001", Status.FAILED, "out of memory"), SNAPSHOT)
    view.message("stopping")
    assert len(lines) == 3
    assert lines[1].startswith("t0001 (mlac) failed: out of memory | 5/12 trials")


def test_live_view_leaves_failures_and_messages_behind() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    view = LiveView(console)
    view.start("sweep fake")
    view.update(lambda: SNAPSHOT)
    view.finished(result("t0001", Status.FAILED, "out of memory"), SNAPSHOT)
    view.message("[stopping]")
    view.close()
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "t0001 (mlac) failed: out of memory" in text
    assert "[stopping]" in text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3600, "1 h 00 min")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
