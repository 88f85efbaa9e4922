"""Whole sweeps with the fake trials of `tests/fakes/sweep.py`, run from a test, and what to look at afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from sdm_ray.sweep import SilentView, SweepOutcome, run_sweep
from tests.fakes import sweep as sweep_fakes


def run(
    folder: Path, function: str = "smooth", *, view: SilentView | None = None, resume: bool = False, **changes: Any
) -> SweepOutcome:
    settings = sweep_fakes.settings(folder, **{"resources__max_concurrent_trials": 2, **changes})
    view = view or SilentView()
    return run_sweep(settings, resume=resume, trial_function=f"tests.fakes.sweep:{function}", view=view)


def stored_trials(outcome: SweepOutcome) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{outcome.folder}/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(storage=storage, study_name=name).trials


def ids(count: int) -> list[str]:
    return [f"t{index:04d}" for index in range(count)]


class RecordingTracker:
    """Keeps its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error = error

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any, **options: Any) -> str:
            self.calls.append((method, *arguments))
            return "mlflow ui"

        return call

    def run_link(self, trial_id: str) -> dict[str, str]:
        return {"mlflow_run": f"run of {trial_id}"}
