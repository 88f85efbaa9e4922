"""Where trials stand, and what a tracker hears of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep.standing import MAX_DESCRIPTION, SweepReport, standings
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.tracking import NoTracker
from tests.fakes import sweep as sweep_fakes
from tests.fakes.results import accuracies, trial_result

REGRET = str(Metric.REGRET_ACCURACY)
DESIRED, HARMFUL = str(Metric.DESIRED_ACCURACY), str(Metric.HARMFUL_WORST_ACCURACY)


class Heard(NoTracker):
    """Keeps what it is told of a sweep."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.tags: dict[str, dict[str, Any]] = {}
        self.descriptions: list[str] = []

    def log_sweep(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.setdefault(step, {}).update(metrics)

    def annotate(self, tags: Mapping[str, Mapping[str, Any]], *, description: str | None = None) -> None:
        for trial_id, values in tags.items():
            self.tags.setdefault(trial_id, {}).update(values)
        self.descriptions += [] if description is None else [description]


def ended(
    trial_id: str, desired: float, harmful: float, status: Status = Status.COMPLETE, **more: float
) -> TrialResult:
    metrics = {} if status in (Status.FAILED, Status.STOPPED) else accuracies(desired, harmful)
    further = {name.replace("__", "/"): value for name, value in more.items()}
    return trial_result(trial_id, status=status, metrics=metrics | further)


def take(state: SweepState, result: TrialResult) -> TrialResult:
    role = "reference" if result.trial_id in sweep_fakes.REFERENCES else "search"
    state.start(Entry(result.trial_id, role, "mlac", 0))  # type: ignore[arg-type]
    state.finish(result)
    return result


def test_every_trial_stands_somewhere_and_moves_when_others_end(tmp_path: Path) -> None:
    state = SweepState(sweep_fakes.settings(tmp_path, search__max_desired_drop=0.1, search__num_trials=9))
    state.start(Entry("t0009", "search", "mlac", 9))
    take(state, ended("t0000", 0.9, 0.7))
    assert standings(state) == {"t0000": {"frontier": "infeasible", "verdict": None}}, "not known while tuned runs"
    take(state, ended("tuned", 0.95, 0.8))
    assert standings(state)["t0000"]["frontier"] == "front"
    take(state, ended("t0001", 0.92, 0.6))
    take(state, ended("t0002", 0.91, 0.61, **{f"{HARMFUL}/low": 0.55, f"{HARMFUL}/high": 0.65}))
    take(state, ended("t0003", 0.5, 0.5))
    take(state, ended("t0004", 0.95, 0.1, audit__passed=0.0))
    take(state, ended("t0005", 0.9, 0.65, scratch__dominates=1.0))
    take(state, ended("t0006", 0.9, 0.5, Status.FAILED))
    take(state, ended("t0007", 0.9, 0.5, Status.STOPPED))
    take(state, ended("t0008", 0.1, 0.5, Status.INFEASIBLE))
    assert {name: tags["frontier"] for name, tags in standings(state).items()} == {
        "t0000": "dominated", "tuned": "reference", "t0001": "front", "t0002": "near", "t0003": "infeasible",
        "t0004": "audited out", "t0005": "no better than scratch", "t0006": "failed", "t0007": "stopped",
        "t0008": "infeasible",
    }  # fmt: skip


def test_all_trials_of_a_point_stand_where_it_does(tmp_path: Path) -> None:
    """Its seeds, once all have ended, and its final attack; a point that lost a seed stands nowhere."""
    state = SweepState(sweep_fakes.settings(tmp_path, search__num_seeds=2, references="[]", final="{num_points: 1}"))
    for point in ("t0000", "t0001"):
        for index, trial_id in enumerate((point, f"{point}-s1")):
            state.start(Entry(trial_id, "search", "mlac", 0, point=point, seed_index=index))
    state.finish(ended("t0000", 0.9, 0.7))
    assert standings(state) == {"t0000": {"frontier": "open", "verdict": None}}
    state.finish(ended("t0000-s1", 0.9, 0.7))
    state.finish(ended("t0001", 0.9, 0.7))
    state.finish(ended("t0001-s1", 0.9, 0.7, Status.FAILED))
    state.start(Entry("t0000-final", "final", "mlac", point="t0000-final"))
    state.finish(ended("t0000-final", 0.9, 0.8))
    words = {name: tags["frontier"] for name, tags in standings(state).items()}
    assert words == {
        "t0000": "front", "t0000-s1": "front", "t0001": "failed", "t0001-s1": "failed", "t0000-final": "front",
    }  # fmt: skip


def test_a_tracker_hears_of_the_sweep_with_every_trial(tmp_path: Path) -> None:
    state, heard = SweepState(sweep_fakes.settings(tmp_path, search__num_trials=3)), Heard()
    report = SweepReport(state=state, tracker=heard)
    for result in (
        ended("tuned", 0.95, 0.8),
        ended("t0000", 0.9, 0.7, **{REGRET: 0.2, f"{REGRET}/low": 0.1, f"{REGRET}/high": 0.3}),
        ended("t0001", 0.92, 0.6),
        ended("t0002", 0.9, 0.5, Status.FAILED),
    ):
        report.take(take(state, result))
    assert sorted(heard.metrics) == [1, 2, 3, 4], "one step for each trial that has ended"
    assert "sweep/desired" not in heard.metrics[1], "a reference is none of the searched trials"
    assert (heard.metrics[2]["sweep/desired"], heard.metrics[3]["sweep/harmful"]) == (0.9, 0.6)
    assert "sweep/desired" not in heard.metrics[4]
    assert heard.metrics[2]["sweep/hypervolume"] == pytest.approx(0.9 * 0.3)
    assert heard.metrics[4]["sweep/hypervolume"] == pytest.approx(0.92 * 0.4)
    last = {name: heard.metrics[4][f"sweep/{name}"] for name in ("complete", "failed", "infeasible", "on_front")}
    assert last == {"complete": 2.0, "failed": 1.0, "infeasible": 0.0, "on_front": 1.0}
    report.close()
    assert heard.tags["t0000"] == {"frontier": "dominated", "verdict": "not blocked"}
    assert heard.tags["t0001"]["frontier"] == "front"
    assert len(heard.descriptions) == 2, "at first and at the end; once a minute between them"
    lines = heard.descriptions[-1].splitlines()
    assert lines[0] == "3 trials: 2 complete, 1 failed; 1 on the front, hypervolume 0.3680"
    assert lines[2] == "| trial | method | desired | harmful |"
    assert lines[4:6] == ["| t0001 | MLAC | 0.920 | 0.600 |", "| tuned | MLAC | 0.950 | 0.800 |"]
    assert "frontier.html" in lines[-1]


def test_a_long_front_is_cut_and_the_references_stay(tmp_path: Path) -> None:
    state, heard = SweepState(sweep_fakes.settings(tmp_path, search__num_trials=200)), Heard()
    take(state, ended("tuned", 0.95, 0.8))
    for index in range(200):
        take(state, ended(f"t{index:04d}", 0.5 + index / 1000, 0.4 + index / 1000))
    SweepReport(state=state, tracker=heard).close()
    (text,) = heard.descriptions
    assert len(text) <= MAX_DESCRIPTION
    assert "| t0199 |" in text
    assert "| t0000 |" not in text
    assert "| tuned |" in text
    assert "200 on the front; the rest is in `frontier.json`." in text
