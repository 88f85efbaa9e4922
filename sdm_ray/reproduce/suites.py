"""The suites: which sweep each one runs, which claims it decides, and which models each figure shows."""

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
    """Harmful accuracy against n for some models; those that a sweep does not have are left out."""

    name: str
    title: str
    models: tuple[str, ...]
    needs: str
    """The model without which the figure is left out."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A comparison that one command runs."""

    name: str
    title: str
    file: str
    """Sweep file below `sweeps/`, without `.yaml`; the small twin ends in `_small`."""
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    beside: tuple[str, ...] = ()
    """Suites whose models are shown too, where their sweeps lie beside this one's and met the same data and attack."""


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
    title="The paper's setting and what was found",
    models=("tuned", "mlac-k16", "found-without-map", "found", "searched", "random"),
    needs="found",
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
            title="What was found against the paper's setting",
            file="beat_paper",
            claims=BEAT,
            figures=(BEATEN,),
        ),
    )
}


def suite_settings(suite: Suite, *, small: bool, overrides: Sequence[str] = ()) -> SweepSettings:
    """The sweep of a suite, from its file.

    Raises:
        UsageError: when the file is not found or invalid, or selects something, or lacks the floor.
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
    """A sweep file: below the working directory, beside the package's sources, or where the wheel put it."""
    for place in (Path(), Path(sdm_ray.__file__).parent.parent, Path(sys.prefix) / "share" / "sdm-ray"):
        if (place / "sweeps" / name).is_file():
            return place / "sweeps" / name
    raise UsageError(f"sweeps/{name} is not found; run this in a clone of sdm-ray")
