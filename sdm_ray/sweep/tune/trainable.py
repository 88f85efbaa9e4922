"""The Ray Trainable around `worker.TrialWorker`.

The trial keeps its checkpoints in its own folder and resumes from them, so that Tune has none to keep: a trial whose
process died is begun again with the same job and goes on where it was, and one that had finished reports its result.
"""

from __future__ import annotations

import json
from typing import Any

from ray.tune import Trainable

from sdm_ray.sweep.cluster.object_store import join
from sdm_ray.sweep.cluster.worker import Job, TrialWorker
from sdm_ray.sweep.tune.jobs import CACHES, JOB


class TrialTrainable(Trainable):
    """Advances one trial about a second at a time; processes are reused for the next trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a job; the work, imports included, begins with the first step."""
        self._shared = join(config[CACHES])
        self._worker = TrialWorker(Job.from_json(config[JOB]), self._shared)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Drop the trial that this process ran before and take another."""
        self._worker.close()
        self._worker = TrialWorker(Job.from_json(new_config[JOB]), self._shared)
        return True

    def step(self) -> dict[str, Any]:
        """One report; the last one is marked done and carries the result."""
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
        """Nothing: the trial's folder holds its checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the trial finds its checkpoints itself."""

    def cleanup(self) -> None:
        """Close the trial at the yield that it has reached."""
        self._worker.close()
