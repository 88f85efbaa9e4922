"""The user's own modules, which a command imports before it validates anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rich.markup import escape

from sdm_ray.cli.progress import error_console
from sdm_ray.config import SweepSettings, TrialSettings, check_modules, load_own_modules

T = TypeVar("T", TrialSettings, SweepSettings)


def with_modules(settings: T, named: Sequence[str] | None, overrides: Sequence[str] | None) -> T:
    """Import the user's modules; those named by the file alone are printed, and must be importable from here."""
    for place in check_modules(settings, named or (), overrides or ()):
        error_console.print(f"the settings load the module {escape(str(place))}", soft_wrap=True)
    return load_own_modules(settings, named or ())
