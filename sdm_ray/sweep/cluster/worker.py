"""Runs one trial inside a worker process, in steps of about a second, and leaves nothing of it behind. No Ray."""

from __future__ import annotations

import gc
import inspect
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdm_ray.config import TrialSettings, content_hash, load_own_modules, override
from sdm_ray.core.cache import SharedCache
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import write_bytes
from sdm_ray.core.lock import FolderLock
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.notices import gathered
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import Status, TrialResult, readable_result
from sdm_ray.sweep.cluster.failures import Failure, classify, failure_of, is_device_fault
from sdm_ray.sweep.cluster.functions import TrialFunction, load_function
from sdm_ray.sweep.cluster.mirror import Mirror, below
from sdm_ray.sweep.cluster.watchdog import HANG, Watchdog

REPORT_SECONDS = 1.0
"""A report to the driver gathers the progress of at least this long."""
LOCK_SECONDS = 60.0
"""How long a trial waits for a dying process to let go of its folder."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker process needs to run one trial; it travels as JSON."""

    trial_id: str
    output_dir: str
    settings: dict[str, Any]
    """The trial's base settings, with the method of a reference."""
    params: dict[str, Any] = field(default_factory=dict)
    trial_function: str = "sdm_ray.trial.run:iterate_trial"
    working_dir: str | None = None
    """Where relative paths of the settings start."""
    python_path: list[str] = field(default_factory=list)
    """Where the driver finds modules, so that a worker finds the same trial function."""
    gpu_memory_share: float | None = None
    """Cap of a trial that shares its GPU."""
    max_silent_seconds: float | None = None
    """The process ends itself when a step takes longer."""
    mirror: str | None = None
    """Storage that holds copies of trials' folders, by their ids; None where every node sees them."""
    source: str | None = None
    """Id of another trial whose folder this one reads: the final attack reads the model there."""

    def to_json(self) -> str:
        """The job as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass
class Report:
    """What a trial reports to the driver, gathered over about a second."""

    progress: Progress | None = None
    """The last one."""
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Metrics with their step, in order."""
    result: TrialResult | None = None
    """Set on the final report alone."""
    failure: Failure | None = None
    """Of which kind the failure was, where the result is one of a known kind."""
    notices: list[str] = field(default_factory=list)
    """Sentences for people."""


class TrialWorker:
    """Runs one trial as a generator; a failure of the trial becomes a failed result.

    Args:
        job: the trial.
        shared: cache entries of other machines.
    """

    def __init__(self, job: Job, shared: SharedCache | None = None) -> None:
        self.job, self._shared = job, shared
        self._lock = FolderLock(Path(job.output_dir) / ".lock")
        self._mirror: Mirror | None = None
        self._steps: Generator[Progress, None, TrialResult] | None = None

    def advance(self, seconds: float = REPORT_SECONDS) -> Report:
        """Run for about this long (at least to the next yield), or to the end.

        Raises:
            Exception: only a fault of the accelerator, after which the process is of no use.
        """
        report = Report()
        with gathered(report.notices):
            self._advance(report, seconds)
        return report

    def _advance(self, report: Report, seconds: float) -> None:
        job, deadline = self.job, time.monotonic() + seconds
        try:
            if self._steps is None:
                self._steps = self._begin()
            with Watchdog(Path(job.output_dir), job.max_silent_seconds) as watchdog:
                while time.monotonic() < deadline or report.progress is None:
                    watchdog.begin_step()
                    report.progress = next(self._steps)
                    measured = {k: v for k, v in report.progress.metrics.items() if k != Metric.TRAIN_STEP}
                    if measured:
                        report.rows.append((report.progress.done, measured))
            self._push()
        except StopIteration as stop:
            report.result = stop.value
        except (Exception, SystemExit) as error:
            if is_device_fault(error):
                raise
            report.result, report.failure = self._failed(error), failure_of(error)
        if report.result is not None:
            self._keep(report)
            self.close()

    def close(self) -> None:
        """Close the generator (its `finally` blocks run) and release the folder."""
        if self._steps is not None:
            self._steps.close()
        self._lock.release()

    def _push(self) -> None:
        if self._mirror is not None:
            self._mirror.push()

    def _keep(self, report: Report) -> None:
        """Put the files of an ended trial where others find them; where that cannot be done, the trial has failed."""
        try:
            self._push()
        except RunError as error:
            report.result, report.failure = self._failed(error), failure_of(error)

    def _begin(self) -> Generator[Progress, None, TrialResult]:
        job = self.job
        (Path(job.output_dir) / HANG).unlink(missing_ok=True)  # of an earlier process
        if job.mirror is None and (finished := finished_result(job)) is not None:
            return _ended(finished)  # a dying process may still hold the folder
        self._lock.acquire(wait_seconds=LOCK_SECONDS)
        if job.mirror is not None:
            self._mirror = Mirror(Path(job.output_dir), below(job.mirror, job.trial_id))
            self._mirror.pull()
            if job.source is not None:
                Mirror(Path(job.output_dir).parent / job.source, below(job.mirror, job.source)).pull()
        if job.working_dir is not None and Path(job.working_dir).is_dir():
            os.chdir(job.working_dir)
        sys.path += [entry for entry in job.python_path if entry not in sys.path]
        if (finished := finished_result(job)) is not None:
            return _ended(finished)
        settings = load_own_modules(override(TrialSettings.model_validate(job.settings), job.params))
        pristine_process(settings.seed, settings.runtime.num_threads, job.gpu_memory_share)
        function = load_function(job.trial_function)
        return function(settings, Path(job.output_dir), trial_id=job.trial_id, **self._context(function))

    def _context(self, function: TrialFunction) -> dict[str, Any]:
        """The keyword `context`, for a function that takes it."""
        if "context" not in inspect.signature(function).parameters:
            return {}
        from sdm_ray.sweep.search.samplers import attack_samplers
        from sdm_ray.trial.context import TrialContext

        return {"context": TrialContext(samplers=attack_samplers(), shared=self._shared)}

    def _failed(self, error: BaseException) -> TrialResult:
        output_dir = Path(self.job.output_dir)
        with suppress(OSError):  # the disk may be what failed
            write_bytes(output_dir / "error.txt", "".join(traceback.format_exception(error)).encode(errors="replace"))
        settings = TrialSettings.model_validate(self.job.settings)
        with suppress(UsageError):  # where the point itself is invalid, the base settings stand for it
            settings = override(settings, self.job.params)
        return TrialResult(
            trial_id=self.job.trial_id,
            config_hash=content_hash(settings),
            method=settings.train.method,
            seed=settings.seed,
            status=Status.FAILED,
            metrics={},
            output_dir=output_dir,
            error=classify(error),
        )


def finished_result(job: Job) -> TrialResult | None:
    """The result that lies in a trial's folder; None where there is none, or it is damaged or of other settings.

    Raises:
        UsageError: when the job's params do not fit its settings.
        RunError: when the file cannot be read.
    """
    result = readable_result(Path(job.output_dir))
    if result is None:
        return None
    settings = override(TrialSettings.model_validate(job.settings), job.params)
    return result if result.config_hash == content_hash(settings) else None


def _ended(result: TrialResult) -> Generator[Progress, None, TrialResult]:
    """A trial that ends at once."""
    yield from ()
    return result


def pristine_process(seed: int, num_threads: int, gpu_memory_share: float | None) -> None:
    """Put the process's global state where a fresh one would have it, so that nothing leaks between trials."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.set_default_dtype(torch.float32)
    if torch.are_deterministic_algorithms_enabled():  # to set it costs an import of torch's compiler, two seconds
        torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if gpu_memory_share is not None:
            torch.cuda.set_per_process_memory_fraction(gpu_memory_share)
