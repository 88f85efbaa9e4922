"""The user's modules that settings name in `modules`; they are imported before what they register is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sdm_ray.config.sweep import SweepSettings
from sdm_ray.config.trial import TrialSettings, as_modules
from sdm_ray.core.extensions import check_named, load_modules

T = TypeVar("T", TrialSettings, SweepSettings)


def load_own_modules(settings: T, further: Iterable[str] = ()) -> T:
    """Import the modules in the settings, and return the settings with the digests of the modules' sources.

    Args:
        settings: a trial or a sweep.
        further: names of more modules to import, whatever their digest.

    Raises:
        UsageError: for a module that cannot be imported, or whose digest differs from the one in the settings.
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
    """Check, before any import, that modules named only by a settings file are in the working directory.

    Args:
        settings: settings from a file.
        named: modules that the user named on the command line.
        overrides: the user's `PATH=VALUE` overrides; modules set by one count as named by the user.

    Returns:
        Files of the modules that only the settings file names.

    Raises:
        UsageError: for such a module in another place.
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
