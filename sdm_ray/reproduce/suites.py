"""Suites: the sweep that each of them runs, its claims, and the models in each figure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sdm_ray
from sdm_ray.config import SweepSettings, load_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.reproduce.claims import Claim
from sdm_ray.reproduce.expectations import BEAT, LATER, LEAD, PAPER, REGRESSION


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Figure of harmful accuracy against n for some models; models that are not in the sweep are omitted."""

    name: str
    title: str
    models: tuple[str, ...]
    needs: str
    """Required model; the figure is omitted without it."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Comparison that is run by one command."""

    name: str
    title: str
    file: str
    """Name of the sweep file in `sweeps/`, without `.yaml`; the small version ends in `_small`."""
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    beside: tuple[str, ...] = ()
    """Suites whose models are added, if their sweeps are in the same parent folder with the same data and attack."""


METHODS = Figure(
    name="methods",
    title="What each method leaves to an attacker",
    models=("pretrained", "tuned", "ac", "mlac-k16", "persistent", "random"),
    needs="mlac-k16",
)
INNER_STEPS = Figure(
    name="inner_steps",
    title="More inner steps in training",
    models=("tuned", "mlac-k4", "mlac-k16", "random"),
    needs="mlac-k4",
)
CALIBRATION = Figure(
    name="calibration",
    title="Calibrated and uncalibrated blocking",
    models=("tuned", "mlac-k16-uncalibrated", "mlac-k16", "random"),
    needs="mlac-k16-uncalibrated",
)
PENALTY = Figure(
    name="gradient_penalty",
    title="A penalty on the adversary's gradient in place of its loss",
    models=("tuned", "gradient-penalty", "mlac-k16", "random"),
    needs="gradient-penalty",
)

BEATEN = Figure(
    name="beaten",
    title="The paper's setting, distillation, and erasure with continued pretraining",
    models=(
        "tuned",
        "mlac-k16",
        "distilled_scratch",
        "retained",
        "erase-10",
        "erase-products",
        "erase-retain",
        "random",
    ),
    needs="erase-retain",
)
DEFENCES = Figure(
    name="defences",
    title="Later defences under the same trainer and attacker",
    models=(
        "tuned",
        "gradient-ascent",
        "seam",
        "sophon-inverse",
        "sophon-uniform",
        "mlac-ar",
        "tar",
        "mlac-k16",
        "random",
    ),
    needs="tar",
)

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="paper-bios",
            title="Henderson et al. (2023) on biographies",
            file="paper_bios",
            claims=(*PAPER, *LEAD),
            figures=(METHODS, INNER_STEPS, CALIBRATION, PENALTY),
        ),
        Suite(
            name="paper-regression",
            title="Henderson et al. (2023), the regression",
            file="paper_regression",
            claims=REGRESSION,
            figures=(METHODS, INNER_STEPS, CALIBRATION, PENALTY),
        ),
        Suite(
            name="later-defences",
            title="Later defences under one attacker",
            file="later_defences",
            claims=LATER,
            figures=(DEFENCES,),
            beside=("paper-bios",),
        ),
        Suite(
            name="beat-paper",
            title="Erasure of products with continued pretraining against the paper and others",
            file="beat_paper",
            claims=BEAT,
            figures=(BEATEN,),
        ),
    )
}


def suite_settings(suite: Suite, *, small: bool, overrides: Sequence[str] = ()) -> SweepSettings:
    """Load the sweep settings of a suite.

    Raises:
        UsageError: if the file is not found or invalid, includes a search, or lacks the reference `random`.
    """
    name = f"{suite.file}{'_small' if small else ''}.yaml"
    settings = load_settings(SweepSettings, _find(name), overrides)
    if "random" not in settings.references:
        raise UsageError(f"{name}: references must hold 'random', which every verdict is relative to")
    if settings.search.num_trials:
        raise UsageError(
            f"{name}: search.num_trials is {settings.search.num_trials}, but a suite selects nothing; set it to 0"
        )
    return settings


def _find(name: str) -> Path:
    """Find a sweep file: in the working directory, next to the package's sources, or in the wheel's data folder."""
    for place in (Path(), Path(sdm_ray.__file__).parent.parent, Path(sys.prefix) / "share" / "sdm-ray"):
        if (place / "sweeps" / name).is_file():
            return place / "sweeps" / name
    raise UsageError(f"sweeps/{name} is not found; run this in a clone of sdm-ray")
