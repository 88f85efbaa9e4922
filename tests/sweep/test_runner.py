"""Whole sweeps with fake trials: order, feasibility, failures, warm start, resources.

What is about processes runs on a local Ray (`ray_cluster`), what is about decisions in this process (`in_process`).
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from sdm_ray.config import ResourceSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import Status
from sdm_ray.frontier.tables import read_extras, read_tables
from sdm_ray.sweep import SilentView, SweepOutcome, run_sweep
from sdm_ray.sweep import runner as runner_module
from sdm_ray.sweep.cluster.connection import num_fitting, ray_environment
from sdm_ray.sweep.search import study as study_module
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.sweep.tune.jobs import trial_values
from sdm_ray.sweep.view.live import result_line
from tests.fakes import sweep as sweep_fakes
from tests.fakes.sweep import RATE, WEIGHT

on_ray = pytest.mark.usefixtures("ray_cluster")
in_process = pytest.mark.usefixtures("in_process")


def run(
    folder: Path, function: str = "smooth", *, view: SilentView | None = None, resume: bool = False, **changes: Any
) -> SweepOutcome:
    settings = sweep_fakes.settings(folder, **{"resources__max_concurrent_trials": 2, **changes})
    view = view or SilentView()
    return run_sweep(settings, resume=resume, trial_function=f"tests.fakes.sweep:{function}", view=view)


def stored_trials(outcome: SweepOutcome) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{outcome.folder}/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(storage=storage, study_name=name).trials


class RecordingTracker:
    """Keeps its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error = error

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any, **options: Any) -> str:
            self.calls.append((method, *arguments))
            return "mlflow ui"

        return call

    def run_link(self, trial_id: str) -> dict[str, str]:
        return {"mlflow_run": f"run of {trial_id}"}


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


def ids(count: int) -> list[str]:
    return [f"t{index:04d}" for index in range(count)]


@on_ray
def test_failures_of_every_kind(tmp_path: Path) -> None:
    """None ends the sweep, none becomes a point, each has its reason; a killed process is started again."""
    view = SilentView()
    outcome = run(
        tmp_path, "troubled", view=view, search__num_trials=9, references="[tuned]", resources__max_failures=1
    )
    results = {result.trial_id: result for result in outcome.results}
    assert list(results) == ["tuned", *(name for name in ids(9) if name != "t0005")]
    failed = {result.trial_id: str(result.error) for result in outcome.failures}
    assert list(failed) == ["t0000", "t0001", "t0002", "t0003"]
    assert failed["t0000"].startswith("RuntimeError: the loss is not finite")
    assert failed["t0001"] == "harmful/worst_accuracy is nan"
    assert failed["t0002"] == "the trial reported no desired/accuracy"
    assert failed["t0003"].startswith("SystemExit")
    said = "trial t0005: its process died twice: killed, or crashed without a word; it stays unfinished"
    assert sum(message.startswith(said) for message in view.messages) == 1, "and not that it hung"
    assert outcome.interrupted, "what was killed from outside is no result, and --resume goes on with it"
    assert {point.trial_id for point in outcome.points} == results.keys() - failed.keys()
    assert len(sweep_fakes.events(results["t0004"].output_dir, "started")) == 2
    assert len(sweep_fakes.events(results["t0006"].output_dir, "finished")) == 1
    states = [trial.state.name for trial in stored_trials(outcome)]
    expected = {trial_id: "FAIL" if trial_id in failed else "COMPLETE" for trial_id in ids(9)} | {"t0005": "RUNNING"}
    assert states == list(expected.values()), "Optuna hears nothing of a process that was killed"


@in_process
def test_a_failing_storage_ends_the_sweep_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, asked = SearchStudy.ask, itertools.count()

    def ask_twice(self: SearchStudy, point: Any = None) -> Any:
        if next(asked) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "optuna.db")
        return ask(self, point)

    monkeypatch.setattr(SearchStudy, "ask", ask_twice)
    with pytest.raises(RunError, match=r"No space left on device: optuna.db; .* --resume"):
        run(tmp_path, references="[]", resources__max_concurrent_trials=1)
    assert [entry.result is not None for entry in read_record(tmp_path / "fake").entries.values()] == [True, True]


@in_process
def test_a_full_disk_is_no_result_of_a_trial(tmp_path: Path) -> None:
    """It interrupts the sweep, Optuna hears nothing of it, and `--resume` goes on with exactly what is missing."""
    view, changes = SilentView(), {"references": "[tuned]", "search__num_trials": 5}
    first = run(tmp_path, "disk_full", view=view, resources__max_concurrent_trials=1, **changes)
    assert first.interrupted
    assert [result.trial_id for result in first.results] == ["tuned", "t0000"]
    (said,) = [message for message in view.messages if "t0001" in message]
    assert "No space left on device; free space; it stays unfinished, and --resume goes on with it" in said
    assert [trial.state.name for trial in stored_trials(first)] == ["COMPLETE", "RUNNING"]
    (first.folder / "freed").write_text("")
    second = run(tmp_path, "disk_full", resume=True, **changes)
    assert not second.interrupted
    assert [result.trial_id for result in second.results] == ["tuned", *ids(5)]
    assert not second.failures
    assert [trial.state.name for trial in stored_trials(second)] == ["COMPLETE"] * 5
    assert all(len(sweep_fakes.events(result.output_dir, "finished")) == 1 for result in second.results)


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
def test_reused_processes_keep_nothing(tmp_path: Path) -> None:
    outcome = run(tmp_path, "leaky", search__num_trials=6, references="[]", resources__max_concurrent_trials=1)
    found = [json.loads((result.output_dir / "found.json").read_text()) for result in outcome.results]
    assert len({tuple(trial[1:]) for trial in found}) == 1
    assert len({trial[0] for trial in found}) == 1, "one process ran all trials"


@in_process
def test_a_tracker_that_does_not_open_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = RecordingTracker(UsageError("tracking.uri: no MLflow server answers"))
    monkeypatch.setattr(runner_module, "open_tracker", lambda settings, folder, **options: tracker)
    with pytest.raises(UsageError, match="no MLflow server answers"):
        run(tmp_path)


@in_process
def test_resources_that_never_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cpus_per_trial is 512 but the cluster has \d+ CPUs"):
        run(tmp_path, resources__cpus_per_trial=512)
    with pytest.raises(UsageError, match=r"gpus_per_trial is 0.5 but the cluster has 0 GPUs"):
        num_fitting(ResourceSettings(gpus_per_trial=0.5), {"CPU": 4.0})
    assert num_fitting(ResourceSettings(cpus_per_trial=1, gpus_per_trial=0.25), {"CPU": 16.0, "GPU": 2.0}) == 8
    assert num_fitting(ResourceSettings(max_concurrent_trials=3), {"CPU": 16.0}) == 3


def test_local_clusters_of_one_process_share_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps the first token that it reads: a second cluster with another one could not be talked to."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    tokens = []
    for _ in range(2):
        with ray_environment(local=True):
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 64


@in_process
def test_points_are_repeated_over_seeds_and_the_best_are_attacked_again(tmp_path: Path) -> None:
    """Means and intervals over seeds; Optuna hears of points; the front is that of the final attack alone."""
    changes = {
        "search__num_trials": 3, "search__num_seeds": 2, "final": "{num_points: 2}", "references": "[tuned]",
        "search__points": json.dumps([{WEIGHT: 1.0}, {WEIGHT: 2.0}, {WEIGHT: 3.0}]),
    }  # fmt: skip
    settings = sweep_fakes.settings(tmp_path, resources__max_concurrent_trials=2, **changes)
    functions = {"trial_function": "tests.fakes.sweep:seeded", "final_function": "tests.fakes.sweep:final"}
    outcome = run_sweep(settings, view=SilentView(), **functions)
    assert not outcome.failures
    searched = [f"{point}{seed}" for point in ids(3) for seed in ("", "-s1")]
    assert [result.trial_id for result in outcome.results][:8] == ["tuned", "tuned-s1", *searched]
    finals = {result.trial_id: result for result in outcome.results[8:]}
    assert len(finals) == 2 * 2 + 2
    assert {"tuned-final", "tuned-s1-final"} <= finals.keys()
    attacked = json.loads((outcome.folder / "trials" / "tuned-s1-final" / "attacked.json").read_text())
    base = settings.trial.attack
    assert attacked == {
        "of": "tuned-s1", "train_seed": 1, "seed": base.seed + 1_000_003 + 10_007, "points": 2 * base.num_search_trials,
    }  # fmt: skip
    points = {point.trial_id: point for point in read_tables(outcome.folder)}
    assert list(points) == ["tuned", *ids(3)]
    chosen = {name.removesuffix("-final") for name in finals if "-s1" not in name} - {"tuned"}
    for index, weight in enumerate((1.0, 2.0, 3.0)):
        point = points[f"t000{index}"]
        mean = 0.8 - 0.06 * weight + 0.005 + 0.1 * (point.trial_id in chosen)
        assert point.harmful == pytest.approx(mean)
        assert point.superseded == (point.trial_id not in chosen)
        assert point.harmful_interval == pytest.approx((mean - 0.0635310, mean + 0.0635310))  # t(0.975, 1) * 0.005
    assert points["tuned"].harmful == pytest.approx(0.8 + 0.005 + 0.1), "references face the same attack"
    assert {point.trial_id for point in outcome.front} <= chosen
    told = stored_trials(outcome)
    assert [trial.values[1] for trial in told] == pytest.approx([0.8 - 0.06 * w + 0.005 for w in (1.0, 2.0, 3.0)])
    again = run_sweep(settings, resume=True, view=SilentView(), **functions)
    assert read_tables(again.folder) == list(points.values())


@in_process
def test_variants_are_run_as_references_with_seeds_of_their_own(tmp_path: Path) -> None:
    variants = {"light": {WEIGHT: 1.0}, "heavy": {WEIGHT: 3.0}}
    outcome = run(
        tmp_path, search__num_trials=0, space="{}", search__num_seeds=2, references="[tuned]", variants=variants
    )
    assert [result.trial_id for result in outcome.results] == [
        f"{name}{seed}" for name in ("tuned", *variants) for seed in ("", "-s1")
    ]
    assert {point.trial_id: point.harmful for point in outcome.points} == pytest.approx(
        {"tuned": 0.8, "light": 0.74, "heavy": 0.62}
    )
    assert all(point.is_reference for point in outcome.points)
    assert outcome.front == []
    by_id = {result.trial_id: result for result in outcome.results}
    assert by_id["heavy-s1"].params == variants["heavy"]
    entries = read_record(outcome.folder).entries
    settings = sweep_fakes.settings(tmp_path, references="[tuned]", variants=variants)
    told = [trial_values(settings, entries[f"{name}-s1"]) for name in ("tuned", *variants)]
    assert {(values["seed"], values["attack"]["seed"]) for values in told} == {(1, 10_007)}
    assert told[2]["train"]["blocking"]["harmful_adapted_calibrated"] == 3.0
    again = run(
        tmp_path, search__num_trials=0, space="{}", search__num_seeds=2, references="[tuned]", variants=variants,
        resume=True,
    )  # fmt: skip
    assert again.points == outcome.points


@in_process
def test_named_models_get_more_seeds_on_resumption(tmp_path: Path) -> None:
    named = {"search__num_trials": 0, "space": "{}", "references": "[tuned]", "variants": {"light": {WEIGHT: 1.0}}}
    run(tmp_path, **named)
    more = run(tmp_path, search__num_seeds=3, resume=True, **named)
    assert [result.trial_id for result in more.results] == [
        f"{name}{seed}" for name in ("tuned", "light") for seed in ("", "-s1", "-s2")
    ]
    fresh = run(tmp_path / "fresh", search__num_seeds=3, **named)
    assert more.points == fresh.points
    with pytest.raises(UsageError, match="num_seeds was 3, is 2"):
        run(tmp_path, search__num_seeds=2, resume=True, **named)


@in_process
def test_named_models_are_added_on_resumption_and_never_altered(tmp_path: Path) -> None:
    named = {"search__num_trials": 0, "space": "{}", "references": "[tuned]"}
    run(tmp_path, **named)
    both = {"references": "[tuned, random]", "variants": {"light": {WEIGHT: 1.0}, "light-2": {WEIGHT: 2.0}}}
    more = run(tmp_path, resume=True, **{**named, **both})
    assert {result.trial_id for result in more.results} == {"tuned", "random", "light", "light-2"}
    fresh = run(tmp_path / "fresh", **{**named, **both})
    assert sorted(more.points, key=str) == sorted(fresh.points, key=str)
    for changes, words in (
        ({"references": "[random]"}, "references was"),
        ({"variants": {"light": {WEIGHT: 1.0}}}, "light-2.*was 2.0, is None"),
        ({"variants": {**both["variants"], "light": {WEIGHT: 3.0}}}, "light.*was 1.0, is 3.0"),
    ):
        with pytest.raises(UsageError, match=words):
            run(tmp_path, resume=True, **{**named, **both, **changes})
    run(tmp_path / "searched", search__num_trials=1, references="[tuned]")
    with pytest.raises(UsageError, match="references was"):
        run(tmp_path / "searched", search__num_trials=1, references="[tuned, random]", resume=True)


@in_process
def test_a_search_gets_no_more_seeds_on_resumption(tmp_path: Path) -> None:
    run(tmp_path / "searched", search__num_trials=1, references="[]")
    with pytest.raises(UsageError, match="num_seeds was 1, is 2"):
        run(tmp_path / "searched", search__num_trials=1, references="[]", search__num_seeds=2, resume=True)


@in_process
def test_a_spent_budget_ends_the_search_and_not_its_final_stage(tmp_path: Path) -> None:
    view = SilentView()
    settings = sweep_fakes.settings(
        tmp_path, search__num_trials=1000, search__max_hours=1e-7, final="{num_points: 1}", references="[tuned]",
        search__points=json.dumps([{WEIGHT: 1.0}]),
    )  # fmt: skip
    functions = {"trial_function": "tests.fakes.sweep:smooth", "final_function": "tests.fakes.sweep:final"}
    outcome = run_sweep(settings, view=view, **functions)
    assert [result.trial_id for result in outcome.results] == ["tuned", "tuned-final"]
    assert not outcome.interrupted
    assert view.messages == ["search.max_hours (1e-07) have passed: no further point is tried"]


@in_process
def test_an_earlier_sweep_is_told_to_the_sampler_and_not_trained_again(tmp_path: Path) -> None:
    earlier = run(tmp_path, search__num_trials=3, search__max_desired_drop=0.05)
    view = SilentView()
    outcome = run(tmp_path, view=view, name="later", search__num_trials=2, search__warm_start="fake")
    assert view.messages == ["warm start: 3 of 3 points of fake fit this space"]
    assert [result.trial_id for result in outcome.results if result.trial_id.startswith("t0")] == ids(2)
    told = stored_trials(outcome)
    assert [trial.values for trial in told[:3]] == [trial.values for trial in stored_trials(earlier)]
    assert [bool(trial.constraints) for trial in told] == [True] * 5
    assert len(told) == 5
    assert {point.trial_id for point in outcome.points} == {*sweep_fakes.REFERENCES, *ids(2)}
    with pytest.raises(UsageError, match=r"mean something else here \(trial\.train\.num_outer_steps was 1000, is 7\)"):
        run(tmp_path, name="other", search__warm_start="fake", trial__train__num_outer_steps=7)
    with pytest.raises(UsageError, match="names this sweep itself"):
        run(tmp_path, name="self", search__warm_start=str(tmp_path / "self"))


@on_ray
def test_a_hopeless_trial_is_stopped_at_its_rung_and_told_as_that(tmp_path: Path) -> None:
    """Weight 0 blocks no more than tuning does; one far below the bound on desired accuracy is beyond repair."""
    points = json.dumps([{WEIGHT: 1.0}, {WEIGHT: 0.1}, {WEIGHT: 4.0}])
    space = {WEIGHT: {"type": "float", "low": 0.1, "high": 4.0}}
    outcome = run(
        tmp_path, "climbing", search__num_trials=3, search__points=points, search__max_desired_drop=0.04,
        references="[tuned]", space=json.dumps(space), search__stopping="{infeasible_slack: 0.02}",
        trial__train__blocking="{harmful_adapted_calibrated: 1}", resources__max_concurrent_trials=1,
    )  # fmt: skip
    results = {result.trial_id: result for result in outcome.results}
    assert results["t0000"].status is Status.COMPLETE
    assert results["t0001"].status is Status.COMPLETE, "0.794 is below 0.8, the tuned reference's"
    assert results["t0002"].status is Status.STOPPED
    assert results["t0002"].error == "stopped at outer step 2: its desired accuracy, 0.840, is below 0.900"
    trials = outcome.folder / "trials"
    assert sweep_fakes.events(trials / "t0000", "step4")
    assert not sweep_fakes.events(trials / "t0002", "finished")
    told = stored_trials(outcome)
    assert [trial.state.name for trial in told] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert told[2].constraints == {"stopped": 1.0}
    assert read_record(outcome.folder).rungs[2].keys() == {"tuned", *ids(3)}
    assert not outcome.interrupted


@on_ray
def test_hung_and_hungry_trials_are_started_again(tmp_path: Path) -> None:
    view = SilentView()
    outcome = run(
        tmp_path, "hungry", view=view, references="[]", resources__max_silent_seconds=2, resources__max_failures=1
    )
    results = {result.trial_id: result for result in outcome.results}
    assert {name: result.status.value for name, result in results.items()} == {
        "t0000": "complete", "t0001": "complete", "t0002": "failed", "t0003": "complete",
    }  # fmt: skip
    error = "it made no progress for 2 s, twice (hang.txt in its folder says where); resources.max_failures"
    assert str(results["t0002"].error).startswith(error)
    hang = (outcome.folder / "trials" / "t0002" / "hang.txt").read_text()
    assert "in hungry" in hang, "every thread's stack"
    assert not (outcome.folder / "trials" / "t0001" / "hang.txt").exists()
    shrunk = "trial t0000: out of memory; it goes on from its checkpoint, and from now on 1 run at once"
    assert view.messages.count(shrunk) == 1
    assert len(sweep_fakes.events(outcome.folder / "trials" / "t0000", "started")) == 2
    assert [trial.state.name for trial in stored_trials(outcome)] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


@in_process
def test_a_trial_that_never_has_memory_enough_fails(tmp_path: Path) -> None:
    outcome = run(tmp_path, "starved", references="[]", search__num_trials=2)
    assert [result.status for result in outcome.results] == [Status.FAILED] * 2
    assert {str(result.error).split(":")[0] for result in outcome.results} == {"out of memory"}
    times = [len(sweep_fakes.events(outcome.folder / "trials" / name, "started")) for name in ids(2)]
    assert sorted(times) == [1, 2], "the first to fail ran again, with nothing beside it"


@in_process
def test_a_locked_storage_is_waited_for_and_then_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "SQLITE_SECONDS", 2)
    file = tmp_path / "fake" / "optuna.db"
    locks = list[sqlite3.Connection]()
    told = SearchStudy.tell

    def tell(study: SearchStudy, *arguments: Any, **options: Any) -> None:
        """Another program holds the file while it is written to: first for a moment, then for good."""
        if len(locks) < 2:
            locks.append(sqlite3.connect(file, check_same_thread=False, isolation_level=None))
            locks[-1].execute("BEGIN EXCLUSIVE")
        if len(locks) == 1:
            threading.Timer(0.2, locks[0].close).start()
        told(study, *arguments, **options)

    monkeypatch.setattr(SearchStudy, "tell", tell)
    with pytest.raises(RunError, match=r"the sweep stopped: .*database is locked.*run the same command with --resume"):
        run(tmp_path, references="[]", resources__max_concurrent_trials=1)
    ended = [entry.trial_id for entry in read_record(tmp_path / "fake").entries.values() if entry.result is not None]
    assert ended == ids(2), "the first was told after a moment, the second is in the ledger"
    locks[1].close()
    outcome = run(tmp_path, resume=True, references="[]")
    assert [trial.state.name for trial in stored_trials(outcome)] == ["COMPLETE"] * 4
    assert all(len(sweep_fakes.events(outcome.folder / "trials" / name, "finished")) == 1 for name in ids(4))


@in_process
def test_failed_checks_are_said_at_the_trial_and_uninformative_ones_once(tmp_path: Path) -> None:
    view = SilentView()
    outcome = run(tmp_path, "suspect", view=view, search__num_trials=2)
    assert not outcome.front
    assert outcome.infeasible["t0000"] == "the audit failed (information: hidden, not removed)"
    assert sum("collapse is uninformative on these data" in message for message in view.messages) == 1
    searched = [result for result in outcome.results if result.trial_id == "t0001"]
    assert "audit failed (information: hidden" in result_line(searched[0])
    assert all(point.held_back for point in outcome.points if not point.is_reference)
    details = read_extras(outcome.folder).details["t0001"]
    assert details.reason == "the audit failed (information: hidden, not removed)"
    assert details.failed == {"information": "hidden, not removed"}
    assert "collapse" in details.uninformative


@in_process
def test_a_sweep_settles_the_pooling_once_and_keeps_it(tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    (encoder / "1_Pooling").mkdir(parents=True)
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    asked = {"trial__encoder__name": str(encoder), "trial__data__source": "a/b", "references": "[tuned]"}
    view = SilentView()
    outcome = run(tmp_path, view=view, search__num_trials=1, **asked)
    assert "pooling: mean" in (outcome.folder / "sweep.yaml").read_text()
    assert sum("encoder.pooling: mean, as 1_Pooling/config.json" in message for message in view.messages) == 1
    # A sweep of before such files were read goes on as it began.
    text = (outcome.folder / "sweep.yaml").read_text()
    (outcome.folder / "sweep.yaml").write_text(text.replace("pooling: mean", "pooling: native"))
    again = SilentView()
    run(tmp_path, view=again, resume=True, search__num_trials=1, **asked)
    assert not [message for message in again.messages if "pooling" in message]
