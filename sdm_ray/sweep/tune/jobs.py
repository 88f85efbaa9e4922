"""Builds the job of a worker process from a trial's ledger entry."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdm_ray.config import Origin, SweepSettings, override
from sdm_ray.config.trial import REPEAT_SEED
from sdm_ray.core.result import FINAL
from sdm_ray.sweep.cluster.mirror import trials_uri
from sdm_ray.sweep.cluster.worker import Job
from sdm_ray.sweep.search.models import ordered_references, reference_settings
from sdm_ray.sweep.state.ledger import Entry, trial_folder

JOB, TRIAL, CACHES = "job", "trial", "caches"
"""Keys of a trial's Tune config: its job as JSON, its id, and the name of the index of shared caches (or None)."""


@dataclass(frozen=True, kw_only=True)
class JobMaker:
    """Builds the jobs of a sweep."""

    settings: SweepSettings
    folder: Path
    """The sweep's folder."""
    trial_function: str
    """`module:function` that trains and attacks a model."""
    final_function: str
    """`module:function` that runs the final attack on a trial's model."""
    caches: str | None = None
    """Name of the index of cache entries shared between nodes; None if they share none."""

    def config(self, entry: Entry) -> dict[str, Any]:
        """Tune config of a trial."""
        return {TRIAL: entry.trial_id, JOB: self.job(entry).to_json(), CACHES: self.caches}

    def job(self, entry: Entry) -> Job:
        """Job of a trial."""
        resources, is_final = self.settings.resources, entry.role == "final"
        gpus = resources.gpus_per_trial
        return Job(
            trial_id=entry.trial_id,
            output_dir=str(trial_folder(self.folder, entry.trial_id)),
            settings=trial_values(self.settings, entry),
            params={} if is_final else entry.params,
            trial_function=self.final_function if is_final else self.trial_function,
            working_dir=str(Path.cwd()),
            python_path=[str(Path(path).resolve()) for path in sys.path],
            gpu_memory_share=gpus if 0 < gpus < 1 else None,
            max_silent_seconds=resources.max_silent_seconds,
            mirror=trials_uri(self.settings),
            source=entry.trial_id.removesuffix(FINAL) if is_final else None,
        )


def trial_values(settings: SweepSettings, entry: Entry) -> dict[str, Any]:
    """Base settings of a trial as plain values; a reference has its method or variant, a final attack its params."""
    trial = settings.trial
    name = entry.trial_id if entry.role == "reference" else f"{settings.name}/{entry.trial_id}"
    changes: dict[str, Any] = {"name": name, "seed": trial.seed + entry.seed_index}
    attack, point = trial.attack, entry.point.removesuffix(FINAL)
    if point in ordered_references(settings):
        trial = reference_settings(settings, point)
    if entry.role == "final":
        trial = override(trial, entry.params)
        base = entry.trial_id.removesuffix(FINAL)
        origin = Origin(sweep=settings.name, trial_id=base, rule="final attack")
        changes["origin"], attack = origin, settings.final_attack()
    changes["attack"] = attack.model_copy(update={"seed": attack.seed + REPEAT_SEED * entry.seed_index})
    return trial.model_copy(update=changes).model_dump(mode="json")
