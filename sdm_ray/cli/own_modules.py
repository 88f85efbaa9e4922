"""Modules of the user's own, which a command loads before it checks anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rich.markup import escape

from sdm_ray.cli.progress import error_console
from sdm_ray.config import SweepSettings, TrialSettings, check_modules, load_own_modules

T = TypeVar("T", TrialSettings, SweepSettings)


def with_modules(settings: T, named: Sequence[str] | None, overrides: Sequence[str] | None) -> T:
    """Load modules of the user's own; those that only the file asks for are shown, and must lie at hand."""
    for place in check_modules(settings, named or (), overrides or ()):
        error_console.print(f"the settings load the module {escape(str(place))}", soft_wrap=True)
    return load_own_modules(settings, named or ())
