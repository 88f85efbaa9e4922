"""Ray `Trainable` that wraps `worker.TrialWorker`.

A trial keeps its checkpoints in its own folder and resumes from them, so Tune stores none. If the process of a trial
dies, Tune starts the same job again: the trial continues from its checkpoint or, if it had finished, reports its
result.
"""

from __future__ import annotations

import json
from typing import Any

from ray.tune import Trainable

from sdm_ray.sweep.cluster.object_store import join
from sdm_ray.sweep.cluster.worker import Job, TrialWorker
from sdm_ray.sweep.tune.jobs import CACHES, JOB


class TrialTrainable(Trainable):
    """Runs one trial in steps of about a second; the process is reused for the next trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Accept a job; the work, imports included, begins with the first step."""
        self._shared = join(config[CACHES])
        self._worker = TrialWorker(Job.from_json(config[JOB]), self._shared)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Close the previous trial and accept another job."""
        self._worker.close()
        self._worker = TrialWorker(Job.from_json(new_config[JOB]), self._shared)
        return True

    def step(self) -> dict[str, Any]:
        """Advance the trial and return a report; the last one is marked done and contains the result."""
        report = self._worker.advance()
        result = report.result
        return {
            "progress": None if report.progress is None else report.progress[:3],
            "rows": report.rows,
            "result": None if result is None else json.dumps(result.to_dict()),  # Tune flattens mappings
            "failure": report.failure,
            "notices": report.notices,
            "done": result is not None,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the trial's checkpoints are in its own folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: the trial loads its own checkpoints."""

    def cleanup(self) -> None:
        """Close the trial's generator at its current yield."""
        self._worker.close()
