"""All pinned values by area and case, and how closely another machine must agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.golden import attacks, gradients, pins, searches, trainings, trials


class Area(NamedTuple):
    """Cases that are alike."""

    cases: dict[str, Callable[[Path], Any]]
    """Each computes a value in the folder of the tiny encoders, which is the working directory."""
    tolerance: tuple[float, float] | None
    """Relative and absolute, elsewhere than on the machine that recorded; None is exact everywhere."""
    package: str = ""
    """Another version of this package computes something else altogether."""
    portable: bool = True
    """Whether another machine says anything at all."""

    def is_exact_everywhere(self) -> bool:
        """Whether every machine gives the same values, so that any may record them."""
        return self.tolerance is None and self.portable


AREAS = {
    "gradients": Area(gradients.CASES, (1e-9, 1e-10)),
    "calibration": Area(gradients.CALIBRATIONS, (1e-5, 1e-5)),
    "trainings-float64": Area(trainings.DOUBLE, (1e-7, 1e-9)),
    "trainings-float32": Area(trainings.SINGLE, (5e-3, 5e-3)),
    "attacks-world": Area(attacks.WORLD, (1e-6, 1e-8)),
    "attacks-encoder": Area(attacks.ENCODERS, (2e-2, 2e-2)),
    "trials": Area(trials.CASES, (2e-2, 2e-2)),
    "searches": Area(searches.CASES, (1e-9, 1e-12), package="optuna"),
    "search-gp": Area(searches.GAUSSIAN, None, portable=False),
    "exact": Area(trials.EXACT, None),
}


def compute(area: str, case: str, folder: Path) -> Any:
    """The value of a case, as plain JSON."""
    return pins.plain(AREAS[area].cases[case](folder))
