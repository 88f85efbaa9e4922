"""sdm-ray: search for self-destructing models (Henderson et al., arXiv 2211.14946).

The public API. Names are imported when they are first used, so that `import sdm_ray` costs little and works with
neither ray nor mlflow installed.

Settings: `TrialSettings`, `SweepSettings`, `load_settings`, `override`, `content_hash`.
One model: `run_trial`, `iterate_trial`, `TrialResult`, `attack_model`, `load_exported`.
Your data in memory: `dataset_source`.
Many: `run_sweep`, `load_best`, `Point`, `pareto_front`, `hypervolume`.
Errors: `UsageError`, `RunError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdm_ray.attack.protocol import attack_model
    from sdm_ray.config import SweepSettings, TrialSettings, content_hash, load_settings, override
    from sdm_ray.core.errors import RunError, UsageError
    from sdm_ray.core.result import TrialResult
    from sdm_ray.data.memory import dataset_source
    from sdm_ray.frontier.points import Point, hypervolume, pareto_front
    from sdm_ray.models.export import load_exported
    from sdm_ray.sweep import run_sweep
    from sdm_ray.sweep.records.best import load_best
    from sdm_ray.trial.run import iterate_trial, run_trial

_HOME = {
    "Point": "frontier.points",
    "RunError": "core.errors",
    "SweepSettings": "config",
    "TrialResult": "core.result",
    "TrialSettings": "config",
    "UsageError": "core.errors",
    "attack_model": "attack.protocol",
    "content_hash": "config",
    "dataset_source": "data.memory",
    "hypervolume": "frontier.points",
    "iterate_trial": "trial.run",
    "load_best": "sweep.records.best",
    "load_exported": "models.export",
    "load_settings": "config",
    "override": "config",
    "pareto_front": "frontier.points",
    "run_sweep": "sweep",
    "run_trial": "trial.run",
}

__all__ = [
    "Point",
    "RunError",
    "SweepSettings",
    "TrialResult",
    "TrialSettings",
    "UsageError",
    "attack_model",
    "content_hash",
    "dataset_source",
    "hypervolume",
    "iterate_trial",
    "load_best",
    "load_exported",
    "load_settings",
    "override",
    "pareto_front",
    "run_sweep",
    "run_trial",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sdm_ray' has no attribute {name!r}")
    return getattr(import_module(f"sdm_ray.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
