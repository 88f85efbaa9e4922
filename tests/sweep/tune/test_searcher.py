"""The searcher as Ray Tune drives it, without Ray: what it hands out, and how it takes a trial's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep.cluster.worker import HANG, Failure, Job, TrialWorker
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.tune.deaths import KILLED, NODE_LOST
from sdm_ray.sweep.tune.jobs import JOB, JobMaker
from sdm_ray.sweep.tune.searcher import SweepSearcher
from tests.fakes import sweep as sweep_fakes


class Driven:
    """A sweep of two trials whose worker runs in this process."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        settings = sweep_fakes.settings(folder, references="[]", search__num_trials=2, **changes)
        study = SearchStudy.open(settings, storage=f"sqlite:///{folder}/optuna.db", name="study", create=True)
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
            announce=lambda text: None,
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
    return TrialResult(
        trial_id="t0000", config_hash="", method="mlac", seed=0, status=Status.FAILED, metrics={}, output_dir=folder,
        error="out of memory: lower the batch sizes",
    )  # fmt: skip


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
