"""Arguments and options that several commands share, and the allowed values of some of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a setting by dotted path; the value is YAML. Repeatable."
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        metavar="NAME",
        help="Load a module of your own as it is, beside those of the file: it may register terms, attack families, "
        "metrics, sources of data. Repeatable.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow that holds the run. [default: $MLFLOW_TRACKING_URI, else the sweeps in runs/]", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

SweepOrRun = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP", help="A sweep's folder, its name below `runs/`, or `mlflow:RUN_ID` of any of its runs."
    ),
]


class Method(StrEnum):
    """Training methods of a trial."""

    pretrained = "pretrained"
    random = "random"
    tuned = "tuned"
    erase = "erase"
    distil = "distil"
    distilled_scratch = "distilled_scratch"
    ac = "ac"
    mlac = "mlac"


class Rule(StrEnum):
    """Rules for selecting a point of the frontier."""

    constrained = "constrained"
    knee = "knee"
    weighted = "weighted"
    trial = "trial"


class AttackPreset(StrEnum):
    """Budgets of an attack."""

    quick = "quick"
    standard = "standard"
    paper = "paper"
    worst_case = "worst-case"


class Suite(StrEnum):
    """Comparisons that `reproduce` runs."""

    paper_bios = "paper-bios"
    paper_regression = "paper-regression"
    later_defences = "later-defences"
    beat_paper = "beat-paper"


class Shell(StrEnum):
    """Shells with completion."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


class Document(StrEnum):
    """Settings documents that have a schema."""

    trial = "trial"
    sweep = "sweep"
