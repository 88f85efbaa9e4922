"""Modules of a user's own in settings: named by `modules`, loaded before anything that they register is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sdm_ray.config.sweep import SweepSettings
from sdm_ray.config.trial import TrialSettings, as_modules
from sdm_ray.core.extensions import check_named, load_modules

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


def check_modules(
    settings: TrialSettings | SweepSettings, named: Iterable[str], overrides: Sequence[str]
) -> list[Path]:
    """Check that modules that a settings file alone asks for lie in the working directory, before any is loaded.

    Args:
        settings: from a file.
        named: modules that a person named.
        overrides: `PATH=VALUE` by a person; one that sets modules names them.

    Returns:
        Files of the modules that the settings file alone asks for.

    Raises:
        UsageError: for a module that lies elsewhere.
    """
    trial = settings.trial if isinstance(settings, SweepSettings) else settings
    paths = {text.partition("=")[0].strip().rpartition(".")[2] for text in overrides}
    asked = {"modules": tuple(trial.modules), "term_modules": trial.train.term_modules}
    shown = {"modules": "modules", "term_modules": "train.term_modules"}
    places = []
    for field, modules in asked.items():
        if field not in paths:
            places += check_named([name for name in modules if name not in set(named)], shown[field])
    return list(dict.fromkeys(places))
