"""What a sweep with fake trials decides: seeds, stages, budgets, warm start, resources. It runs in this process."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from sdm_ray.config import ResourceSettings
from sdm_ray.core import files
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import Status
from sdm_ray.frontier.tables import read_extras, read_tables
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep import runner as runner_module
from sdm_ray.sweep.cluster.connection import num_fitting, ray_environment
from sdm_ray.sweep.search import study as study_module
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.sweep.tune.jobs import trial_values
from sdm_ray.sweep.view.live import result_line
from tests.fakes import sweep as sweep_fakes
from tests.fakes.sweep import WEIGHT
from tests.fakes.sweep_runs import RecordingTracker, ids, run, stored_trials

in_process = pytest.mark.usefixtures("in_process")


@in_process
@pytest.mark.parametrize("fault", [errno.EPERM, errno.ENOSPC])
def test_a_failing_storage_ends_the_sweep_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    """One that cannot be written because the disk is full interrupts it."""
    view = SilentView()
    ask, asked = SearchStudy.ask, itertools.count()

    def ask_twice(self: SearchStudy, point: Any = None) -> Any:
        if next(asked) == 2:
            raise OSError(fault, os.strerror(fault), "optuna.db")
        return ask(self, point)

    monkeypatch.setattr(SearchStudy, "ask", ask_twice)
    changes = {"references": "[]", "resources__max_concurrent_trials": 1}
    if fault == errno.ENOSPC:
        assert run(tmp_path, view=view, **changes).interrupted
        assert "No space left on device: optuna.db: the sweep ends; what has finished is kept" in "".join(view.messages)
    else:
        with pytest.raises(RunError, match=r"Operation not permitted: optuna.db; .* --resume"):
            run(tmp_path, **changes)
    assert [entry.result is not None for entry in read_record(tmp_path / "fake").entries.values()] == [True, True]


@in_process
@pytest.mark.parametrize("event", ["trial", "result"])
def test_a_full_disk_under_the_ledger_interrupts_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    write, full = files._write, [True]

    def fail(file: int, content: bytes | memoryview) -> None:
        if full and f'"event": "{event}"'.encode() in bytes(content) and b"t0001" in bytes(content):
            write(file, bytes(content)[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, content)

    monkeypatch.setattr(files, "_write", fail)
    view, changes = SilentView(), {"references": "[]", "search__num_trials": 3}
    first = run(tmp_path, "smooth", view=view, resources__max_concurrent_trials=1, **changes)
    assert first.interrupted
    (said,) = [message for message in view.messages if "the sweep ends" in message]
    assert "No space left on device" in said
    assert "--resume" in said
    assert [result.trial_id for result in first.results] == ["t0000"]
    full.clear()
    second = run(tmp_path, "smooth", resume=True, **changes)
    assert not second.interrupted
    assert [result.trial_id for result in second.results] == ids(3)
    assert all(len(sweep_fakes.events(result.output_dir, "finished")) == 1 for result in second.results)


@in_process
@pytest.mark.parametrize("method", ["reconcile", "set_user_attr"])
def test_a_full_disk_under_a_study_interrupts_before_and_after_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Also where Optuna and SQLAlchemy have wrapped the error of the database."""

    def fail(*arguments: Any) -> None:
        cause = sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        cause.__cause__ = cause.orig
        raise optuna.exceptions.StorageInternalError("invalid data in the commit") from cause

    owner: Any = SearchStudy if method == "reconcile" else optuna.Study
    monkeypatch.setattr(owner, method, study_module._in_a_sentence(fail) if method == "reconcile" else fail)
    view, tracker = SilentView(), RecordingTracker()
    monkeypatch.setattr("sdm_ray.sweep.runner.open_tracker", lambda *given, **options: tracker)
    outcome = run(tmp_path, view=view, references="[]")
    assert outcome.interrupted
    assert len(outcome.results) == (0 if method == "reconcile" else 4)
    (said,) = [text for text in view.messages if "the sweep ends" in text]
    assert re.match(r"Optuna's storage sqlite:///.*: database or disk is full: the sweep ends; .* --resume", said)


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
