"""Runs one trial inside a worker process, in steps of about a second, without leaking state. Independent of Ray."""

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
"""Minimum time between two reports to the driver."""
LOCK_SECONDS = 60.0
"""Time that a trial waits for its folder's lock, which a dying process may still hold."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker process needs to run one trial; sent as JSON."""

    trial_id: str
    output_dir: str
    settings: dict[str, Any]
    """The trial's base settings, with the method of a reference."""
    params: dict[str, Any] = field(default_factory=dict)
    trial_function: str = "sdm_ray.trial.run:iterate_trial"
    working_dir: str | None = None
    """Folder that relative paths in the settings refer to."""
    python_path: list[str] = field(default_factory=list)
    """`sys.path` of the driver, so that a worker finds the same trial function."""
    gpu_memory_share: float | None = None
    """Fraction of GPU memory that a trial may use if it shares its GPU."""
    max_silent_seconds: float | None = None
    """Time limit of a step, after which the process ends itself."""
    mirror: str | None = None
    """URI of the copies of trials' folders, by trial id; None if all nodes share a file system."""
    source: str | None = None
    """Id of another trial whose folder this trial reads: the final attack loads the model from there."""

    def to_json(self) -> str:
        """Serialise the job."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Deserialise a job from `to_json`."""
        return cls(**json.loads(text))


@dataclass
class Report:
    """Report of a trial to the driver, collected over about a second."""

    progress: Progress | None = None
    """Latest progress."""
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, metrics), in order of time."""
    result: TrialResult | None = None
    """Set only in the last report."""
    failure: Failure | None = None
    """Kind of a failure after which the trial is rerun; None otherwise."""
    notices: list[str] = field(default_factory=list)
    """Messages for the user."""


class TrialWorker:
    """Runs one trial as a generator; an exception of the trial is converted to a failed result.

    Args:
        job: the trial.
        shared: cache entries shared between nodes; None shares none.
    """

    def __init__(self, job: Job, shared: SharedCache | None = None) -> None:
        self.job, self._shared = job, shared
        self._lock = FolderLock(Path(job.output_dir) / ".lock")
        self._mirror: Mirror | None = None
        self._steps: Generator[Progress, None, TrialResult] | None = None

    def advance(self, seconds: float = REPORT_SECONDS) -> Report:
        """Run for about this long (at least until the next yield), or until the trial ends.

        Raises:
            Exception: only for a fault of the accelerator, after which the process cannot be reused.
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
        """Copy the files of an ended trial to the shared storage; if this fails, the trial counts as failed."""
        try:
            self._push()
        except RunError as error:
            report.result, report.failure = self._failed(error), failure_of(error)

    def _begin(self) -> Generator[Progress, None, TrialResult]:
        job = self.job
        (Path(job.output_dir) / HANG).unlink(missing_ok=True)  # left by an earlier process
        if job.mirror is None and (finished := finished_result(job)) is not None:
            return _ended(finished)  # without the lock, which a dying process may still hold
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
        """Keyword argument `context`, if the function accepts it."""
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
        with suppress(UsageError):  # if the point itself is invalid, use the base settings
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
    """Load the result in a trial's folder; None if there is none, or it is damaged or has other settings.

    Raises:
        UsageError: if the job's params do not fit its settings.
        RunError: if the file cannot be read.
    """
    result = readable_result(Path(job.output_dir))
    if result is None:
        return None
    settings = override(TrialSettings.model_validate(job.settings), job.params)
    return result if result.config_hash == content_hash(settings) else None


def _ended(result: TrialResult) -> Generator[Progress, None, TrialResult]:
    """Generator of a trial that has already ended."""
    yield from ()
    return result


def pristine_process(seed: int, num_threads: int, gpu_memory_share: float | None) -> None:
    """Reset global state to that of a fresh process, so that nothing leaks from one trial to the next."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.set_default_dtype(torch.float32)
    if torch.are_deterministic_algorithms_enabled():  # the setter imports torch's compiler, which takes two seconds
        torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if gpu_memory_share is not None:
            torch.cuda.set_per_process_memory_fraction(gpu_memory_share)
