"""Modules of a user's own in settings: named by `modules`, loaded before anything that they register is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from sdm_ray.config.sweep import SweepSettings
from sdm_ray.config.trial import TrialSettings, as_modules
from sdm_ray.core.extensions import load_modules

T = TypeVar("T", TrialSettings, SweepSettings)


def load_own_modules(settings: T, further: Iterable[str] = ()) -> T:
    """Import the modules that settings name; gives the settings with the digests of their sources.

    Args:
        settings: a trial or a sweep.
        further: names of modules that are loaded too, as they are.

    Raises:
        UsageError: for a module that cannot be imported, or that is not the one that the settings were made with.
    """
    trial = settings.trial if isinstance(settings, SweepSettings) else settings
    modules = load_modules({**trial.modules, **as_modules(list(further))})
    if modules == trial.modules:
        return settings
    changed = trial.model_copy(update={"modules": modules})
    return settings.model_copy(update={"trial": changed} if isinstance(settings, SweepSettings) else dict(changed))
