"""The ledger, the sweep's folder, and what follows from results."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.lock import FolderLock
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.tables import read_tables, write_tables
from sdm_ray.sweep.records.folder import claimed_folder
from sdm_ray.sweep.state.inputs import inputs_problem
from sdm_ray.sweep.state.ledger import Entry, Ledger, read_record
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.view.live import progress_counts
from tests.fakes import sweep as sweep_fakes
from tests.fakes.results import accuracies, trial_result


def result(trial_id: str, desired: float, harmful: float = 0.5, **more: Any) -> TrialResult:
    return trial_result(trial_id, **{"metrics": accuracies(desired, harmful), **more})


def make_state(folder: Path, **changes: Any) -> SweepState:
    return SweepState(sweep_fakes.settings(folder, **changes))


def make_recorder(folder: Path, **changes: Any) -> Recorder:
    return Recorder.open(sweep_fakes.settings(folder, **changes), folder)


def add(sweep: SweepState | Recorder, ended: TrialResult) -> TrialResult:
    """Start a trial and end it."""
    role = "reference" if ended.trial_id in sweep_fakes.REFERENCES else "search"
    sweep.start(Entry(ended.trial_id, role, "mlac", 0))  # type: ignore[arg-type]
    if isinstance(sweep, Recorder):
        return sweep.finish(ended)
    ended = sweep.checked(ended)
    sweep.finish(ended)
    return ended


def test_ledger_survives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    add(recorder, result("t0000", 0.9))
    path = recorder.ledger.path
    with path.open("a") as file:
        file.write('{"event": "trial", "trial_id": "t00')
    assert list(read_record(tmp_path).entries) == ["t0000"]
    again = Ledger(tmp_path)
    again.start(Entry("t0001", "search", "mlac", 1))
    assert list(read_record(tmp_path).entries) == ["t0000", "t0001"]


def test_ledger_refuses_damage(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    add(recorder, result("t0000", 0.9))
    lines = recorder.ledger.path.read_text().splitlines()
    recorder.ledger.path.write_text("\n".join(["{", *lines]) + "\n")
    with pytest.raises(RunError, match=r"line 1 \(.*\), is damaged"):
        read_record(tmp_path)


def test_ledger_is_strict_json_and_keeps_nan(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    add(recorder, result("t0000", math.nan))
    for line in recorder.ledger.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    kept = read_record(tmp_path).entries["t0000"].result
    assert kept is not None
    assert math.isnan(kept.metrics[Metric.DESIRED_ACCURACY])


@pytest.mark.parametrize(
    ("metrics", "error"),
    [({}, "reported no desired/accuracy"), ({"harmful/worst_accuracy": math.inf}, "worst_accuracy is inf")],
)
def test_missing_and_infinite_objectives_are_failures(tmp_path: Path, metrics: dict[str, float], error: str) -> None:
    state = make_state(tmp_path)
    base = {} if not metrics else result("t0000", 0.9).metrics
    ended = add(state, result("t0000", 0.9, metrics=base | metrics))
    assert ended.status is Status.FAILED
    assert error in str(ended.error)
    assert state.judgement.points() == []


def test_a_trial_on_other_data_than_those_before_it_fails(tmp_path: Path) -> None:
    state, read = make_state(tmp_path), {"data": "a" * 64, "encoder": "b" * 64}
    add(state, result("tuned", 0.9, provenance=read))
    drawn = add(state, result("random", 0.9, method="random", provenance=read | {"encoder": "drawn"}))
    other = add(state, result("t0000", 0.9, provenance=read | {"data": "c" * 64}))
    same = add(state, result("t0001", 0.9, provenance=read))
    assert (drawn.status, other.status, same.status) == (Status.COMPLETE, Status.FAILED, Status.COMPLETE)
    assert "the data had digest aaaaaaaaaaaa and now cccccccccccc" in str(other.error)
    assert inputs_problem(state.trials.values(), read) is None, "a failed trial stands in nobody's way"


def test_feasibility_is_relative_to_tuned(tmp_path: Path) -> None:
    state = make_state(tmp_path, search__max_desired_drop=0.02)
    add(state, result("t0000", 0.939, 0.1))
    assert state.judgement.floor_is_pending
    assert not any(point.feasible for point in state.judgement.points()), "none is before the bound is known"
    add(state, result("tuned", 0.96))
    add(state, result("t0001", 0.9401, 0.6))
    statuses = {ended.trial_id: ended.status for ended in state.results()}
    assert statuses == {"tuned": Status.COMPLETE, "t0000": Status.INFEASIBLE, "t0001": Status.COMPLETE}
    assert [point.trial_id for point in state.snapshot().front] == ["t0001"]
    assert state.judgement.violations(result("t0002", 0.95)) == {"desired": pytest.approx(-0.01), "audit": 0.0}


def test_the_sampler_learns_what_scratch_beats_and_the_trial_stays_complete(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    for dominates, violation in ((1.0, 1.0), (1 / 3, 0.0), (0.0, 0.0)):
        metrics = result("t0000", 0.9).metrics | {str(Metric.SCRATCH_DOMINATES): dominates}
        ended = result("t0000", 0.9, metrics=metrics)
        assert state.judgement.violations(ended)["scratch"] == violation
        assert state.judgement.judged(ended).status is Status.COMPLETE


def test_stopped_trials_are_infeasible_and_no_points(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    ended = add(state, result("t0000", 0.99, 0.1, status=Status.STOPPED))
    assert state.judgement.violations(ended) == {"stopped": 1.0}
    assert state.judgement.points() == []


@pytest.mark.parametrize("drop", ["0.02", "null"])
def test_a_trial_that_stopped_itself_is_infeasible_and_no_point(tmp_path: Path, drop: str) -> None:
    """It has no objective, which would be a failure of any other trial."""
    state = make_state(tmp_path, search__max_desired_drop=drop)
    add(state, result("tuned", 0.96))
    metrics = {str(Metric.DESIRED_ACCURACY): 0.99}
    ended = add(state, result("t0000", 0.9, metrics=metrics, status=Status.INFEASIBLE, error="training stopped"))
    assert (ended.status, ended.error) == (Status.INFEASIBLE, "training stopped")
    assert state.judgement.violations(ended) == {"desired": 1.0}
    assert [point.trial_id for point in state.judgement.points()] == ["tuned"]
    assert state.snapshot().counts[Status.INFEASIBLE] == 1


def test_failed_references_are_run_again(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path, search__max_desired_drop=0.02)
    state = recorder.state
    add(recorder, result("tuned", 0.9, status=Status.FAILED))
    add(recorder, result("t0000", 0.9, status=Status.FAILED))
    assert state.judgement.desired_floor is None
    assert not state.judgement.floor_is_pending
    recorder.restart_failed_references()
    assert state.judgement.floor_is_pending
    assert [entry.trial_id for entry in state.unfinished()] == ["tuned"]
    assert state.num_missing() == 1 + 3 + 3


def test_time_left_counts_what_is_missing(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    assert state.snapshot().seconds_left is None
    state.start(Entry("t0000", "search", "mlac", 0))
    state.begin("t0000")
    state.running["t0000"].started -= 10
    state.finish(result("t0000", 0.9), seconds=state.running_seconds("t0000"))
    state.concurrency = 2
    assert state.snapshot().seconds_left == pytest.approx((3 + 4) * 10 / 2, rel=0.01)
    state.clock.started -= 1800
    assert state.snapshot().trials_per_hour == pytest.approx(2, rel=0.01)


def test_folder_is_entered_again_only_as_asked(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path)
    with pytest.raises(UsageError, match="no sweep to resume"), claimed_folder(settings, resume=True):
        pass
    with claimed_folder(settings, resume=False) as folder:
        assert folder == tmp_path / "fake"
    with pytest.raises(UsageError, match=r"--resume.*--set name="), claimed_folder(settings, resume=False):
        pass
    with claimed_folder(settings, resume=True):
        pass
    changed = sweep_fakes.settings(tmp_path, seed=3, trial__train__num_outer_steps=7)
    with pytest.raises(UsageError) as refusal, claimed_folder(changed, resume=True):
        pass
    assert "seed was 0, is 3" in str(refusal.value)
    assert "trial.train.num_outer_steps was 1000, is 7" in str(refusal.value)
    longer = sweep_fakes.settings(tmp_path, search__num_trials=9, resources__cpus_per_trial=2)
    with claimed_folder(longer, resume=True):
        assert "num_trials: 9" in (folder / "sweep.yaml").read_text()


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = sweep_fakes.settings(tmp_path / "file")
    with pytest.raises(RunError, match="choose another output_dir"), claimed_folder(settings, resume=False):
        pass


def _hold(path: Path, ready: Any) -> None:
    lock = FolderLock(path)
    lock.acquire()
    ready.set()
    multiprocessing.Event().wait(60)


def test_second_driver_is_refused_and_a_dead_ones_lock_is_not(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    (tmp_path / "fake").mkdir()
    holder = context.Process(target=_hold, args=(tmp_path / "fake" / "sweep.lock", ready))
    holder.start()
    try:
        assert ready.wait(30)
        busy = f"in use by process {holder.pid} on"
        with pytest.raises(RunError, match=busy), claimed_folder(settings, resume=False):
            pass
    finally:
        holder.kill()
        holder.join()
    with claimed_folder(settings, resume=False):
        pass


def test_a_point_that_fails_the_audit_is_infeasible_unless_that_is_not_asked_for(tmp_path: Path) -> None:
    for name, asked in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        state = make_state(tmp_path / name, search__require_audit=str(asked).lower())
        metrics = result("t0000", 0.9).metrics | {str(Metric.AUDIT_PASSED): 0.0}
        ended = add(state, result("t0000", 0.9, metrics=metrics))
        judged = state.judgement.judged(ended)
        assert judged.status is (Status.INFEASIBLE if asked else Status.COMPLETE)
        assert state.judgement.violations(ended) == ({"audit": 1.0} if asked else {})
        assert not state.judgement.front(), "it stays off the frontier either way"
        assert state.judgement.infeasible().keys() == ({"t0000"} if asked else set())
        if asked:
            assert judged.error == "the audit failed (audit.json says which check)"


def test_hours_count_across_drivers_and_end_the_search(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path, search__max_hours=1, search__max_gpu_hours=2, resources__gpus_per_trial=0.5)
    state = recorder.state
    add(recorder, result("t0000", 0.9))
    assert state.wants_point()
    recorder.start(Entry("t0001", "search", "mlac", 1))
    state.begin("t0001")
    state.running["t0001"].started -= 4000
    assert state.clock.gpu_hours(state.running.values()) == pytest.approx(4000 * 0.5 / 3600, abs=1e-3)
    state.clock.started -= 3000
    recorder.finish(result("t0001", 0.9))
    again = make_recorder(tmp_path, search__max_hours=1, search__max_gpu_hours=2, resources__gpus_per_trial=0.5).state
    assert again.clock.elapsed_seconds == pytest.approx(3000, abs=5)
    assert again.clock.gpu_hours([]) == pytest.approx(4000 * 0.5 / 3600, abs=1e-3)
    again.clock.started -= 700
    assert again.spent() == "search.max_hours (1) have passed"
    assert not again.wants_point()
    assert again.num_missing() == 4, "the references alone"
    richer = make_recorder(tmp_path, search__max_gpu_hours=0.5, resources__gpus_per_trial=0.5).state
    assert richer.spent() == "search.max_gpu_hours (0.5) are spent"


def test_a_point_is_its_seeds_together(tmp_path: Path) -> None:
    state = make_state(tmp_path, search__num_seeds=2, search__num_trials=2, references="[]")
    state.start(Entry("t0000", "search", "mlac", 0))
    state.finish(result("t0000", 0.9, 0.4))
    assert state.judgement.points() == [], "one seed is not the point"
    planned = state.planned()
    assert planned is not None
    assert (planned.trial_id, planned.point, planned.seed_index, planned.number) == ("t0000-s1", "t0000", 1, 0)
    state.start(planned)
    assert state.planned() is None
    state.finish(result("t0000-s1", 0.8, 0.6, status=Status.FAILED, error="it broke"))
    ended = state.judgement.ended("t0000")
    assert ended is not None
    assert (ended.status, ended.error) == (Status.FAILED, "t0000-s1: it broke")
    assert state.snapshot().counts[Status.FAILED] == 1
    assert state.num_missing() == 2


def test_progress_of_references_counts_every_seed(tmp_path: Path) -> None:
    state = make_state(tmp_path, search__num_seeds=3, search__num_trials=0, references="[tuned, random]")
    state.start(Entry("tuned", "reference", "tuned", 0))
    state.start(Entry("tuned-s1", "reference", "tuned", 0, point="tuned", seed_index=1))
    state.finish(result("tuned", 0.9))
    assert progress_counts(state.snapshot()) == ["1/6 models"]
    state.finish(result("tuned-s1", 0.9, status=Status.FAILED, error="it broke"))
    assert progress_counts(state.snapshot()) == ["2/6 models"]


@pytest.mark.parametrize("first", [0, 1])
def test_the_other_seeds_of_a_lost_point_do_not_begin(tmp_path: Path, first: int) -> None:
    """Whichever ends first: the point is stopped, and one that runs already ends without changing that."""
    recorder = make_recorder(tmp_path, search__num_seeds=3, search__num_trials=2, references="[]")
    state = recorder.state
    recorder.start(Entry("t0000", "search", "mlac", 0))
    recorder.start(Entry("t0000-s1", "search", "mlac", 0, point="t0000", seed_index=1))
    names = ["t0000", "t0000-s1"]
    recorder.finish(result(names[first], 0.9, status=Status.STOPPED, error="hopeless"))
    assert state.planned() is None
    assert state.num_missing() == 1 + 3
    ended = state.judgement.ended("t0000")
    assert ended is not None
    assert (ended.trial_id, ended.status) == ("t0000", Status.STOPPED)
    recorder.finish(result(names[1 - first], 0.9, 0.4))
    assert state.judgement.ended("t0000") == ended
    assert state.snapshot().counts[Status.STOPPED] == 1
    again = make_recorder(tmp_path, search__num_seeds=3, search__num_trials=2, references="[]").state
    assert (again.num_missing(), again.planned()) == (state.num_missing(), None) == (3, None)


def test_what_is_kept_up_to_date_equals_what_is_read_anew(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path, search__max_desired_drop=0.1, search__num_trials=40)
    state = recorder.state
    for index in range(12):
        status = Status.FAILED if index % 5 == 4 else Status.COMPLETE
        state.judgement.front()
        add(recorder, result(f"t{index:04d}", 0.8 + 0.01 * index, 0.5 + 0.01 * (index * 7 % 12), status=status))
        if index == 5:
            add(recorder, result("tuned", 0.95))
    again = make_recorder(tmp_path, search__max_desired_drop=0.1, search__num_trials=40).state
    kept, anew = state.judgement.points(), again.judgement.points()
    assert {point.trial_id: point for point in kept} == {point.trial_id: point for point in anew}
    assert state.judgement.front() == again.judgement.front()
    assert state.judgement.front()
    assert state.snapshot().counts == again.snapshot().counts
    assert {status: count for status, count in again.snapshot().counts.items() if count} == {
        Status.COMPLETE: 6, Status.INFEASIBLE: 4, Status.FAILED: 2,
    }  # fmt: skip


RUNGS: dict[str, tuple[dict[str, Any], list[tuple[float, float]], str | None]] = {
    "weak attack": ({}, [(0.95, 0.79)], None),
    "as broken as tuned": ({}, [(0.95, 0.8)], "it is attacked to 0.800, the tuned reference to 0.800"),
    "broken, not asked for": ({"broken": "false"}, [(0.95, 0.8)], None),
    "infeasible within reach": ({}, [(0.90, 0.5)], None),
    "infeasible beyond repair": ({}, [(0.88, 0.5)], "its desired accuracy, 0.880, is below 0.890"),
    "less slack": ({"infeasible_slack": 0.01}, [(0.92, 0.5)], "its desired accuracy, 0.920, is below 0.930"),
    "infeasible, not asked for": ({"infeasible_slack": "null"}, [(0.5, 0.5)], None),
    "dominated by all of few": ({}, [(0.95, 0.5)] * 3 + [(0.94, 0.6)], None),
    "dominated by all of four": (
        {},
        [(0.95, 0.5)] * 4 + [(0.94, 0.6)],
        "4 of the 4",
    ),
    "fewer peers": (
        {"min_peers": 2},
        [(0.95, 0.5)] * 2 + [(0.94, 0.6)],
        "2 of the 2",
    ),
    "dominated by few of many": ({}, [(0.95, 0.5)] + [(0.93, 0.7)] * 4 + [(0.94, 0.6)], None),
    "a smaller share": (
        {"dominated_share": 0.2},
        [(0.95, 0.5)] + [(0.93, 0.7)] * 4 + [(0.94, 0.6)],
        "1 of the 5",
    ),
    "equal to others": ({}, [(0.95, 0.5)] * 6, None),
    "dominated, not asked for": ({"dominated_share": "null"}, [(0.95, 0.5)] * 4 + [(0.94, 0.6)], None),
}


@pytest.mark.parametrize(("rules", "climbers", "reason"), RUNGS.values(), ids=RUNGS)
def test_rungs_stop_what_is_broken_infeasible_or_dominated(
    tmp_path: Path, rules: dict[str, Any], climbers: list[tuple[float, float]], reason: str | None
) -> None:
    changes = {f"search__stopping__{name}": value for name, value in rules.items()}
    state = make_state(tmp_path, search__max_desired_drop=0.02, **changes)
    state.start(Entry("tuned", "reference", "tuned"))
    assert state.at_rung("tuned", 100, 0.96, 0.8) is None
    for index, values in enumerate(climbers):
        state.start(Entry(f"t{index:04d}", "search", "mlac", index))
        found = state.at_rung(f"t{index:04d}", 100, *values)
    assert (found or "").startswith(reason or "nothing") == (reason is not None)
    assert state.at_rung(f"t{index:04d}", 100, *values) == found, "the same after a resumption"
    assert state.at_rung(f"t{index:04d}", 200, *values) is None, "rungs are compared with themselves alone"


def test_a_third_objective_decides_what_stands_on_the_front(tmp_path: Path) -> None:
    objectives = [
        {"metric": "harmful/n20/accuracy", "direction": "minimize"},
        {"metric": "cost/train_seconds", "direction": "minimize"},
        {"metric": "desired/accuracy", "direction": "maximize"},
        {"metric": "cost/num_fine_tunes", "direction": "maximize"},
    ]
    state = make_state(tmp_path, objectives=json.dumps(objectives))
    for index, (desired, harmful, cost) in enumerate([(0.9, 0.5, 100.0), (0.8, 0.6, 10.0), (0.8, 0.6, 20.0)]):
        metrics = {
            "desired/accuracy": desired, "harmful/n20/accuracy": harmful, "cost/train_seconds": cost,
            "cost/num_fine_tunes": 3.0,
        }  # fmt: skip
        add(state, result(f"t{index:04d}", desired, metrics=metrics))
    assert {point.trial_id for point in state.judgement.front()} == {"t0000", "t0001"}
    point = state.judgement.points()[0]
    assert (point.harmful, point.further) == (0.5, {"cost/train_seconds": 100.0, "cost/num_fine_tunes": -3.0})
    write_tables(state.judgement.points(), tmp_path)
    assert read_tables(tmp_path) == state.judgement.points()
