"""Sweeps whose trials run in processes of a local Ray: they fail, die, hang, are sent a signal, and are used again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from sdm_ray.core.result import Status
from sdm_ray.frontier.tables import read_extras, read_tables
from sdm_ray.sweep import SilentView, SweepOutcome, run_sweep
from sdm_ray.sweep import runner as runner_module
from sdm_ray.sweep.state.ledger import read_record
from tests.fakes import sweep as sweep_fakes
from tests.fakes.sweep import RATE, WEIGHT
from tests.fakes.sweep_runs import RecordingTracker, ids, run, stored_trials

on_ray = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("where", ["ray_cluster", "in_process"])
def test_sweep_end_to_end(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """References first, tuned first of all; warm-start points once; infeasible trials off the front; all is on disk."""
    request.getfixturevalue(where)
    tracker = RecordingTracker()
    monkeypatch.setattr(runner_module, "open_tracker", lambda settings, folder, **options: tracker)
    view = SilentView()
    points = json.dumps([{RATE: 1e-3, WEIGHT: 3.0}, {WEIGHT: 1.0}, {WEIGHT: 0.5}])
    outcome = run(
        tmp_path, view=view, search__points=points, search__num_trials=6, search__sampler="tpe",
        search__max_desired_drop=0.05,
    )  # fmt: skip
    assert not outcome.interrupted
    assert [result.trial_id for result in outcome.results] == [*sweep_fakes.REFERENCES_IN_ORDER, *ids(6)]
    started = [json.loads(line) for line in (outcome.folder / "trials.jsonl").read_text().splitlines()]
    order = [event["trial_id"] for event in started if event["event"] == "trial"]
    assert order == [*sweep_fakes.REFERENCES_IN_ORDER, *ids(6)]

    searched = outcome.results[4:]
    assert searched[0].params == {RATE: 1e-3, WEIGHT: 3.0}
    assert [result.params[WEIGHT] for result in searched[1:3]] == [1.0, 0.5]
    assert {result.status for result in searched[:3]} == {Status.INFEASIBLE, Status.COMPLETE}
    assert searched[0].status is Status.INFEASIBLE
    assert outcome.front
    assert "t0000" not in {point.trial_id for point in outcome.front}
    assert not {point.trial_id for point in outcome.front} & set(sweep_fakes.REFERENCES)
    assert all(point.desired >= 0.96 - 0.05 for point in outcome.front)

    assert any(message == "feasible: desired accuracy of at least 0.910" for message in view.messages)
    judged = {result.trial_id: result.status for result in view.ended}
    assert judged == {result.trial_id: result.status for result in outcome.results}

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{outcome.folder}/optuna.db")
    assert study.user_attrs == {"mlflow_run": "run of -"}
    trials = stored_trials(outcome)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert [trial.user_attrs for trial in trials] == [
        {"trial": trial_id, "mlflow_run": f"run of {trial_id}"} for trial_id in ids(6)
    ]
    assert [trial.params[WEIGHT] for trial in trials[:3]] == [3.0, 1.0, 0.5]
    for result in outcome.results:
        assert len(sweep_fakes.events(result.output_dir, "started")) == 1
        assert (result.output_dir / "result.json").exists()
    assert [point.trial_id for point in read_tables(outcome.folder)] == [point.trial_id for point in outcome.points]
    assert (outcome.folder / "frontier.png").stat().st_size > 1000
    assert read_extras(outcome.folder).details["t0001"].run == "run of t0001"
    check_tracking(tracker, outcome)

    again = run_sweep_again(outcome, tmp_path, search__points=points)
    assert [result.metrics for result in again.results] == [result.metrics for result in outcome.results]


def check_tracking(tracker: RecordingTracker, outcome: SweepOutcome) -> None:
    calls = [call for call in tracker.calls if call[0] != "ui_hint"]
    methods = [call[0] for call in calls]
    assert methods[0] == "start_sweep"
    assert methods[-2:] == ["log_sweep_artifacts", "finish_sweep"]
    assert calls[-1][1] == "complete"
    steps = [call[2] for call in calls if call[0] == "log_sweep"]
    assert steps == [*range(1, len(outcome.results) + 1), len(outcome.results)]
    stand = [call[1] for call in calls if call[0] == "annotate"][-1]
    assert stand["t0000"]["frontier"] == "infeasible"
    assert {name for name, tags in stand.items() if tags["frontier"] == "front"} == {
        point.trial_id for point in outcome.front
    }
    params = {call[1]: call[2] for call in calls if call[0] == "start_trial"}
    assert params["tuned"].keys() == params["t0000"].keys() == {"train.method", RATE, WEIGHT}
    assert methods.count("start_trial") == methods.count("finish_trial") == len(outcome.results)
    logged = [call[3] for call in tracker.calls if call[0] == "log" and call[1] == "t0000"]
    assert logged == [1, 2]
    ended = {call[1].trial_id: call[1].status for call in tracker.calls if call[0] == "finish_trial"}
    assert ended["t0000"] is Status.INFEASIBLE
    assert outcome.tracking_hint == "mlflow ui"


def run_sweep_again(outcome: SweepOutcome, folder: Path, **changes: Any) -> SweepOutcome:
    """`--resume` of a complete sweep returns it and runs nothing."""
    settings = sweep_fakes.settings(
        folder, search__num_trials=6, search__sampler="tpe", search__max_desired_drop=0.05, **changes
    )
    again = run_sweep(settings, resume=True, trial_function="tests.fakes.sweep:smooth", view=SilentView())
    for result in outcome.results:
        assert len(sweep_fakes.events(result.output_dir, "started")) == 1
    return again


@on_ray
def test_failures_of_every_kind(tmp_path: Path) -> None:
    """None ends the sweep, none becomes a point, each has its reason; a killed process is started again.

    So are trials that hang or run out of memory.
    """
    view = SilentView()
    outcome = run(
        tmp_path, "troubled", view=view, search__num_trials=11, references="[tuned]", resources__max_failures=1,
        resources__max_silent_seconds=4,
    )  # fmt: skip
    results = {result.trial_id: result for result in outcome.results}
    assert list(results) == ["tuned", *(name for name in ids(11) if name != "t0005")]
    failed = {result.trial_id: str(result.error) for result in outcome.failures}
    assert list(failed) == ["t0000", "t0001", "t0002", "t0003", "t0009"]
    assert failed["t0000"].startswith("RuntimeError: the loss is not finite")
    assert failed["t0001"] == "harmful/worst_accuracy is nan"
    assert failed["t0002"] == "the trial reported no desired/accuracy"
    assert failed["t0003"].startswith("SystemExit")
    error = "it made no progress for 4 s, twice (hang.txt in its folder says where); resources.max_failures"
    assert failed["t0009"].startswith(error)
    said = "trial t0005: its process died twice: killed, or crashed without a word; it stays unfinished"
    assert sum(message.startswith(said) for message in view.messages) == 1, "and not that it hung"
    assert outcome.interrupted, "what was killed from outside is no result, and --resume goes on with it"
    assert {point.trial_id for point in outcome.points} == results.keys() - failed.keys()
    assert len(sweep_fakes.events(results["t0006"].output_dir, "finished")) == 1
    for name in ("t0004", "t0007", "t0008"):
        assert len(sweep_fakes.events(results[name].output_dir, "started")) == 2
    hang = (outcome.folder / "trials" / "t0009" / "hang.txt").read_text()
    assert "in troubled" in hang, "every thread's stack"
    assert not (outcome.folder / "trials" / "t0008" / "hang.txt").exists()
    shrunk = "trial t0007: out of memory; it goes on from its checkpoint, and from now on 1 run at once"
    assert view.messages.count(shrunk) == 1
    states = [trial.state.name for trial in stored_trials(outcome)]
    expected = {trial_id: "FAIL" if trial_id in failed else "COMPLETE" for trial_id in ids(11)} | {"t0005": "RUNNING"}
    assert states == list(expected.values()), "Optuna hears nothing of a process that was killed"


@on_ray
def test_interrupted_then_resumed(tmp_path: Path) -> None:
    """SIGINT ends the sweep at the trials' next yield; resumed, every trial has ended once and no step ran twice."""
    changes = {"references": "[tuned]", "search__num_trials": 3, "trial__train__num_outer_steps": 60}
    interrupter = threading.Thread(target=interrupt_when, args=(tmp_path / "fake" / "trials" / "t0001",))
    interrupter.start()
    view = SilentView()
    first = run(tmp_path, "slow", view=view, **changes)
    interrupter.join()
    assert first.interrupted
    assert any(message.startswith("stopping") for message in view.messages)
    assert "t0001" not in {result.trial_id for result in first.results}
    assert sweep_fakes.events(tmp_path / "fake" / "trials" / "t0001", "closed")

    second = run(tmp_path, "slow", resume=True, **changes)
    assert not second.interrupted
    assert [result.trial_id for result in second.results] == ["tuned", *ids(3)]
    for result in second.results:
        assert len(sweep_fakes.events(result.output_dir, "finished")) == 1
        counts = [len(sweep_fakes.events(result.output_dir, f"step{step}")) for step in range(1, 61)]
        assert counts == [1] * 60
    assert [trial.state.name for trial in stored_trials(second)] == ["COMPLETE"] * 3


def interrupt_when(trial: Path) -> None:
    """Send SIGINT to this process when the trial has done some steps."""
    deadline = time.monotonic() + 120
    while not sweep_fakes.events(trial, "step3") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


@on_ray
def test_a_hopeless_trial_is_stopped_at_its_rung_and_its_process_used_again_keeps_nothing(tmp_path: Path) -> None:
    """Weight 0 blocks no more than tuning does; one far below the bound on desired accuracy is beyond repair."""
    points = json.dumps([{WEIGHT: 1.0}, {WEIGHT: 4.0}, {WEIGHT: 0.1}])
    space = {WEIGHT: {"type": "float", "low": 0.1, "high": 4.0}}
    outcome = run(
        tmp_path, "climbing", search__num_trials=3, search__points=points, search__max_desired_drop=0.04,
        references="[tuned]", space=json.dumps(space), search__stopping="{infeasible_slack: 0.02}",
        trial__train__blocking="{harmful_adapted_calibrated: 1}", resources__max_concurrent_trials=1,
    )  # fmt: skip
    results = {result.trial_id: result for result in outcome.results}
    assert results["t0000"].status is Status.COMPLETE
    assert results["t0001"].status is Status.STOPPED
    assert results["t0002"].status is Status.COMPLETE, "0.794 is below 0.8, the tuned reference's"
    assert results["t0001"].error == "stopped at outer step 2: its desired accuracy, 0.840, is below 0.900"
    trials = outcome.folder / "trials"
    assert sweep_fakes.events(trials / "t0000", "step4")
    assert not sweep_fakes.events(trials / "t0001", "finished")
    told = stored_trials(outcome)
    assert [trial.state.name for trial in told] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert told[1].constraints == {"stopped": 1.0}
    assert read_record(outcome.folder).rungs[2].keys() == {"tuned", *ids(3)}
    assert not outcome.interrupted
    found = [json.loads((result.output_dir / "found.json").read_text()) for result in outcome.results]
    assert len(found) == 4
    assert len({tuple(trial[1:]) for trial in found}) == 1
    assert len({trial[0] for trial in found}) == 1, "one process ran all trials"
