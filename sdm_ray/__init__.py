"""sdm-ray: search for self-destructing models (Henderson et al., arXiv 2211.14946).

The public API. Names are imported when they are first used, so that `import sdm_ray` costs little and works with
neither ray nor mlflow installed.

Settings: `TrialSettings`, `SweepSettings`, `load_settings`, `override`, `content_hash`.
One model: `run_trial`, `iterate_trial`, `TrialResult`, `attack_model`, `load_exported`.
Your data in memory: `dataset_source`.
Many: `run_sweep`, `load_best`, `Point`, `pareto_front`, `hypervolume`.
Your own: `blocking_term`, `register_family`, `trial_metric`, `data_source`.
Errors: `UsageError`, `RunError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from sdm_ray.attack.families import register as register_family
    from sdm_ray.attack.protocol import attack_model
    from sdm_ray.config import SweepSettings, TrialSettings, content_hash, load_settings, override
    from sdm_ray.core.errors import RunError, UsageError
    from sdm_ray.core.result import TrialResult
    from sdm_ray.data.memory import dataset_source
    from sdm_ray.data.own_sources import data_source
    from sdm_ray.frontier.points import Point, hypervolume, pareto_front
    from sdm_ray.meta.objectives import blocking_term
    from sdm_ray.models.export import load_exported
    from sdm_ray.sweep import run_sweep
    from sdm_ray.sweep.records.best import load_best
    from sdm_ray.trial.own_metrics import trial_metric
    from sdm_ray.trial.run import iterate_trial, run_trial

_HOME = {
    "Point": "frontier.points",
    "RunError": "core.errors",
    "SweepSettings": "config",
    "TrialResult": "core.result",
    "TrialSettings": "config",
    "UsageError": "core.errors",
    "attack_model": "attack.protocol",
    "blocking_term": "meta.objectives",
    "content_hash": "config",
    "data_source": "data.own_sources",
    "dataset_source": "data.memory",
    "hypervolume": "frontier.points",
    "iterate_trial": "trial.run",
    "load_best": "sweep.records.best",
    "load_exported": "models.export",
    "load_settings": "config",
    "override": "config",
    "pareto_front": "frontier.points",
    "register_family": "attack.families:register",
    "run_sweep": "sweep",
    "run_trial": "trial.run",
    "trial_metric": "trial.own_metrics",
}

__all__ = [
    "Point",
    "RunError",
    "SweepSettings",
    "TrialResult",
    "TrialSettings",
    "UsageError",
    "attack_model",
    "blocking_term",
    "content_hash",
    "data_source",
    "dataset_source",
    "hypervolume",
    "iterate_trial",
    "load_best",
    "load_exported",
    "load_settings",
    "override",
    "pareto_front",
    "register_family",
    "run_sweep",
    "run_trial",
    "trial_metric",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'sdm_ray' has no attribute {name!r}")
    module, _, renamed = _HOME[name].partition(":")
    return getattr(import_module(f"sdm_ray.{module}"), renamed or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _version() -> str:
    """The installed version; `unknown` for sources that are not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sdm-ray")
    except PackageNotFoundError:
        return "unknown"
