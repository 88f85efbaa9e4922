"""One trial in a worker process: reports, failures, and nothing left behind for the next trial."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sdm_ray.config import TrialSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.lock import FolderLock
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep.cluster.functions import check_function
from sdm_ray.sweep.cluster.worker import Job, TrialWorker
from tests import ROOT
from tests.fakes import sweep as sweep_fakes


def job(folder: Path, function: str, *, trial_id: str = "t0009", **changes: object) -> Job:
    values = {
        "trial_id": trial_id,
        "output_dir": str(folder / trial_id),
        "settings": TrialSettings().model_dump(mode="json"),
        "trial_function": f"tests.fakes.sweep:{function}",
        **changes,
    }
    return Job.from_json(Job(**values).to_json())  # type: ignore[arg-type]


def run(worker: TrialWorker) -> TrialResult:
    while True:
        report = worker.advance(0.0)
        if report.result is not None:
            return report.result


def test_reports_gather_progress(tmp_path: Path) -> None:
    worker = TrialWorker(job(tmp_path, "smooth", params={sweep_fakes.WEIGHT: 2.0}))
    report = worker.advance(30.0)
    assert report.result is not None
    assert report.progress is not None
    assert report.progress[:3] == ("train", 2, 2)
    assert report.rows == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5})]
    assert report.result.metrics[Metric.DESIRED_ACCURACY] == pytest.approx(0.90)


def test_a_report_takes_about_the_time_it_may(tmp_path: Path) -> None:
    worker = TrialWorker(job(tmp_path, "slow"))
    worker.advance(0.0)
    start = time.monotonic()
    report = worker.advance(0.5)
    assert 0.5 <= time.monotonic() - start < 20, "of the 50 s that the trial takes"
    assert report.result is None
    assert len(report.rows) >= 2
    worker.close()
    assert sweep_fakes.events(tmp_path / "t0009", "closed"), "closing runs the generator's finally blocks"


def test_resumes_and_reports_a_finished_trial_again(tmp_path: Path) -> None:
    settings = TrialSettings().model_dump(mode="json")
    settings["train"]["num_outer_steps"] = 6
    first = TrialWorker(job(tmp_path, "slow", settings=settings))
    for _ in range(3):
        first.advance(0.0)
    first.close()
    ended = run(TrialWorker(job(tmp_path, "slow", settings=settings)))
    again = run(TrialWorker(job(tmp_path, "slow", settings=settings)))
    assert ended.metrics == again.metrics
    steps = [len(sweep_fakes.events(tmp_path / "t0009", f"step{done}")) for done in range(1, 7)]
    assert steps == [1] * 6
    assert len(sweep_fakes.events(tmp_path / "t0009", "finished")) == 1


def test_a_trial_with_a_result_is_never_started_again(tmp_path: Path) -> None:
    """Whatever its function would do; with other settings the function decides."""
    ended = run(TrialWorker(job(tmp_path, "forgetful")))
    assert run(TrialWorker(job(tmp_path, "forgetful"))) == ended
    assert len(sweep_fakes.events(tmp_path / "t0009", "started")) == 1
    run(TrialWorker(job(tmp_path, "forgetful", params={sweep_fakes.WEIGHT: 2.0})))
    assert len(sweep_fakes.events(tmp_path / "t0009", "started")) == 2


@pytest.mark.parametrize(
    ("trial_id", "error"),
    [("t0000", "RuntimeError: the loss is not finite (sweep.py:"), ("t0003", "SystemExit: 3")],
)
def test_failures_are_results(tmp_path: Path, trial_id: str, error: str) -> None:
    ended = run(TrialWorker(job(tmp_path, "troubled", trial_id=trial_id)))
    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert ended.error.startswith(error)
    assert "\n" not in ended.error
    assert "Traceback" in (tmp_path / trial_id / "error.txt").read_text()


def test_bad_point_and_missing_function_are_failures_too(tmp_path: Path) -> None:
    ended = run(TrialWorker(job(tmp_path, "smooth", params={"train.learning_rate": -1})))
    assert "train.learning_rate" in str(ended.error)
    ended = run(TrialWorker(job(tmp_path, "absent")))
    assert ended.status is Status.FAILED
    with pytest.raises(UsageError, match="module:function"):
        check_function("tests.fakes.sweep")
    with pytest.raises(UsageError, match="not found"):
        check_function("tests.no_such_module:smooth")
    check_function("tests.fakes.sweep:smooth")


def test_no_process_imports_more_than_it_needs() -> None:
    """The driver checks a trial's function without torch; a process is reset for a trial without torch's compiler."""
    code = """
import sys
from sdm_ray.sweep.cluster.functions import check_function
from sdm_ray.sweep.cluster.worker import pristine_process
check_function("sdm_ray.trial.run:iterate_trial")
assert "sdm_ray.trial" not in sys.modules and "torch" not in sys.modules
pristine_process(0, 1, None)
assert "torch" in sys.modules and "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_nothing_leaks_into_the_next_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial finds the same seeds, threads, dtype, grad mode and folder after a spoiler as it does first of all."""
    monkeypatch.chdir(tmp_path)
    try:
        found = []
        for trial_id in ("a", "b", "c"):
            seed = 1 if trial_id == "c" else 0
            settings = TrialSettings(seed=seed).model_dump(mode="json")
            run(TrialWorker(job(tmp_path, "leaky", trial_id=trial_id, settings=settings, working_dir=str(tmp_path))))
            found.append(json.loads((tmp_path / trial_id / "found.json").read_text()))
        assert found[0] == found[1]
        assert found[0][1:4] != found[2][1:4], "another seed gives other draws"
        assert found[0][4:] == [1, "torch.float32", True, str(tmp_path)]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_num_threads(1)
        np.random.seed(None)


def test_a_dying_process_is_waited_for(tmp_path: Path) -> None:
    """Two processes never write one trial's folder."""
    lock = FolderLock(tmp_path / "t0009" / ".lock")
    lock.acquire()
    start = time.monotonic()
    threading.Timer(0.5, lock.release).start()
    assert run(TrialWorker(job(tmp_path, "smooth"))).status is Status.COMPLETE
    assert time.monotonic() - start >= 0.5


def test_a_trial_gets_samplers_where_it_takes_a_context(tmp_path: Path) -> None:
    assert run(TrialWorker(job(tmp_path, "surrounded"))).status is Status.COMPLETE
    assert json.loads((tmp_path / "t0009" / "samplers.json").read_text()) == ["sobol", "tpe"]
