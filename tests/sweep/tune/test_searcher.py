"""The searcher as Ray Tune drives it, without Ray: what it hands out, and how it takes a trial's end."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep.cluster.failures import Failure
from sdm_ray.sweep.cluster.watchdog import HANG
from sdm_ray.sweep.cluster.worker import Job, TrialWorker
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.tune.callbacks import SweepScheduler
from sdm_ray.sweep.tune.deaths import KILLED, NODE_LOST
from sdm_ray.sweep.tune.jobs import JOB, TRIAL, JobMaker
from sdm_ray.sweep.tune.searcher import FINISHED, STOPPED_BY_MACHINE, SweepSearcher
from tests.fakes import sweep as sweep_fakes
from tests.fakes.results import trial_result


class Driven:
    """A sweep of two trials whose worker runs in this process."""

    def __init__(self, folder: Path, *, create: bool = True, **changes: Any) -> None:
        settings = sweep_fakes.settings(folder, references="[]", search__num_trials=2, **changes)
        storage = f"sqlite:///{folder}/optuna.db"
        study = self.study = SearchStudy.open(settings, storage=storage, name="study", create=create)
        self.said: list[str] = []
        self.recorder = Recorder.open(settings, folder, concurrency=2)
        self.ended: list[TrialResult] = []
        self.stopped: list[str] = []
        self.searcher = SweepSearcher(
            self.recorder,
            study,
            JobMaker(
                settings=settings,
                folder=folder,
                trial_function="tests.fakes.sweep:forgetful",
                final_function="tests.fakes.sweep:final",
            ),
            on_result=self.ended.append,
            unreported=[],
            stop=self.stopped.append,
            announce=self.said.append,
        )

    def suggest(self, tune_id: str) -> Job:
        config = self.searcher.suggest(tune_id)
        assert isinstance(config, dict)
        return Job.from_json(config[JOB])


def run(job: Job) -> TrialResult:
    """A worker process, from its start to its last report."""
    worker = TrialWorker(job)
    while (report := worker.advance(0.0)).result is None:
        pass
    return report.result


def failed(folder: Path) -> TrialResult:
    """What a worker reports of a trial that failed."""
    error = "out of memory: lower the batch sizes"
    return trial_result("t0000", status=Status.FAILED, output_dir=folder, error=error)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_written_result_counts_when_its_process_dies_before_reporting_it(tmp_path: Path, has_begun: bool) -> None:
    driven = Driven(tmp_path)
    job = driven.suggest("a")
    if has_begun:
        driven.recorder.state.begin("t0000")
    written = run(job)
    driven.searcher.on_trial_complete("a", None, error=True)
    assert [(result.trial_id, result.status) for result in driven.ended] == [("t0000", Status.COMPLETE)]
    assert driven.ended[0].metrics == written.metrics
    assert driven.suggest("b").trial_id == "t0001", "it is not handed out again"


def test_an_end_is_counted_once(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    report = {"result": json.dumps(run(driven.suggest("a")).to_dict())}
    driven.searcher.on_trial_complete("a", report)
    driven.searcher.on_trial_complete("a", None, error=True)
    assert [result.trial_id for result in driven.ended] == ["t0000"]
    assert driven.recorder.ledger.path.read_text().count('"event": "result"') == 1


def test_a_trial_without_a_result_is_handed_out_again_or_failed(tmp_path: Path) -> None:
    """Again where its process died before it began, failed where it had begun and Tune gave it up."""
    driven = Driven(tmp_path)
    driven.suggest("a")
    driven.searcher.on_trial_complete("a", None, error=True)
    assert driven.ended == []
    assert driven.suggest("b").trial_id == "t0000"
    driven.recorder.state.begin("t0000")
    driven.searcher.on_trial_complete("b", None, error=True)
    assert [(result.trial_id, result.status) for result in driven.ended] == [("t0000", Status.FAILED)]
    assert driven.ended[0].error == "its process died; resources.max_failures allows no further start"


def test_a_process_that_died_is_given_its_reason_and_how_often(tmp_path: Path) -> None:
    """Before the trial began as well: then nothing runs that could keep it."""
    driven = Driven(tmp_path)
    for name in "abcd":
        driven.suggest(name)
        for _ in range(3):
            driven.recorder.state.died("t0000", "OSError: no package" if name == "a" else None)
        driven.searcher.on_trial_complete(name, None, error=True)
    assert [result.error for result in driven.ended] == [
        "its process died 12 times: OSError: no package; resources.max_failures allows no further start"
    ]


@pytest.mark.parametrize("dumped", ["", "Thread 0x1 (most recent call first)"])
def test_only_a_process_that_ended_itself_was_hung(tmp_path: Path, dumped: str) -> None:
    """The file is there while a step runs, and a process that is killed leaves it empty."""
    driven = Driven(tmp_path)
    folder = Path(driven.suggest("a").output_dir)
    folder.mkdir(parents=True)
    (folder / HANG).write_text(dumped)
    driven.recorder.state.begin("t0000")
    driven.searcher.on_trial_complete("a", None, error=True)
    assert str(driven.ended[0].error).startswith("it made no progress" if dumped else "its process died")


def test_what_runs_out_of_memory_goes_on_with_fewer_beside_it_until_it_is_alone(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.suggest("a")
    report = {"result": json.dumps(failed(tmp_path).to_dict()), "failure": "out of memory"}
    driven.searcher.on_trial_complete("a", report)
    assert (driven.ended, driven.recorder.state.concurrency) == ([], 1)
    assert driven.suggest("b").trial_id == "t0000"
    driven.searcher.on_trial_complete("b", report)
    assert [(result.trial_id, result.status) for result in driven.ended] == [("t0000", Status.FAILED)]


@pytest.mark.parametrize("reason", [KILLED, NODE_LOST, "NODE_OUT_OF_MEMORY: Task was killed"])
def test_a_process_that_was_killed_from_outside_leaves_its_trial_unfinished(tmp_path: Path, reason: str) -> None:
    driven = Driven(tmp_path)
    driven.suggest("a")
    driven.recorder.state.begin("t0000")
    driven.recorder.state.died("t0000", reason)
    driven.searcher.on_trial_complete("a", None, error=True)
    assert driven.ended == []
    assert driven.searcher.left_unfinished == ["t0000"]
    assert not driven.recorder.state.running
    assert driven.suggest("b").trial_id == "t0001", "it is the next driver's"
    resumed = Recorder.open(driven.recorder.state.settings, tmp_path)
    assert [entry.trial_id for entry in resumed.state.unfinished()] == ["t0000", "t0001"]


def test_a_trial_that_is_killed_under_every_driver_is_left_out(tmp_path: Path) -> None:
    """It is no failure, Optuna hears nothing of it, and only who asks for it has it repeated."""
    for number in range(3):
        driven = Driven(tmp_path, resources__max_kills=3, create=number == 0)
        assert driven.suggest("a").trial_id == "t0000"
        driven.recorder.state.begin("t0000")
        driven.recorder.state.died("t0000", KILLED)
        driven.searcher.on_trial_complete("a", None, error=True)
        assert driven.searcher.left_unfinished == ([] if number == 2 else ["t0000"])
        driven.recorder.ledger.close()
    assert driven.ended == []
    assert driven.said[-1].startswith("trial t0000: its process died: killed")
    assert "under 3 drivers (resources.max_kills), so it is left out; --resume --retry-infra" in driven.said[-1]
    (trial,) = driven.study._study.trials
    assert trial.state.name == "RUNNING"
    last = Driven(tmp_path, resources__max_kills=3, create=False)
    state = last.recorder.state
    assert [entry.trial_id for entry in state.infrastructure()] == ["t0000"]
    assert state.unfinished() == []
    assert state.num_missing() == 1, "the other point"
    assert last.suggest("a").trial_id == "t0001"
    assert Recorder.open(sweep_fakes.settings(tmp_path, resources__max_kills=4), tmp_path).state.infrastructure() == []
    assert last.recorder.retry_infrastructure() == ["t0000"]
    again = Driven(tmp_path, resources__max_kills=3, create=False).recorder.state
    assert [entry.trial_id for entry in again.unfinished()] == ["t0000", "t0001"]


def test_a_reference_that_is_killed_is_always_repeated(tmp_path: Path) -> None:
    """It has no substitute."""
    recorder = Recorder.open(sweep_fakes.settings(tmp_path, references="[tuned]", resources__max_kills=1), tmp_path)
    entry = recorder.state.planned()
    assert entry is not None
    recorder.start(entry)
    recorder.give_up("tuned", "killed")
    assert [entry.trial_id for entry in recorder.state.unfinished()] == ["tuned"]


def test_a_process_that_crashed_or_hung_has_failed(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    for name, reason, dump in (("t0000", "Fatal Python error: Segmentation fault", None), ("t0001", KILLED, 5)):
        driven.suggest(name)
        driven.recorder.state.begin(name)
        driven.recorder.state.died(name, reason, dump=dump)
        driven.searcher.on_trial_complete(name, None, error=True)
    assert [result.status for result in driven.ended] == [Status.FAILED] * 2
    assert "Segmentation fault" in str(driven.ended[0].error)
    assert str(driven.ended[1].error).startswith("it made no progress")


def test_one_that_hung_before_and_was_then_killed_did_not_hang(tmp_path: Path) -> None:
    """The account of the first hang may still lie in its folder."""
    driven = Driven(tmp_path)
    driven.suggest("a")
    driven.recorder.state.begin("t0000")
    for _ in range(2):
        driven.recorder.state.died("t0000", KILLED, dump=5)
    driven.searcher.on_trial_complete("a", None, error=True)
    assert driven.ended == []
    assert driven.searcher.left_unfinished == ["t0000"]


def test_a_fault_of_the_machine_stops_the_sweep_and_is_not_recorded(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.suggest("a")
    report = {"result": json.dumps(failed(tmp_path).to_dict()), "failure": Failure.MACHINE.value}
    driven.searcher.on_trial_complete("a", report)
    assert driven.ended == []
    assert driven.stopped == ["machine"]


def test_a_rung_that_cannot_be_recorded_ends_the_sweep_as_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = Driven(tmp_path)
    driven.suggest("a")
    driven.recorder.state.begin("t0000")
    scheduler = SweepScheduler(driven.recorder, on_error=driven.searcher.give_up)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(driven.recorder.ledger._file, "append", full)
    measured = {str(Metric.rung_desired(1)): 0.9, str(Metric.rung_harmful(1)): 0.5}
    trial = SimpleNamespace(config={TRIAL: "t0000"})
    assert scheduler.on_trial_result(None, trial, {"rows": [(1, measured)]}) == scheduler.CONTINUE  # type: ignore[arg-type]
    assert driven.searcher.error is None
    assert driven.stopped == [STOPPED_BY_MACHINE]
    assert "No space left on device" in driven.said[-1]
    assert driven.searcher.suggest("b") == FINISHED
