"""Attacks by every family: cells, metrics, records, audit, regret and recovery."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdm_ray.attack.findings.audit import Audit, audit
from sdm_ray.attack.findings.recovery import cost_to_recover, recovered_shares, target_accuracy
from sdm_ray.attack.findings.regret import regret
from sdm_ray.attack.findings.signals import measure_signals
from sdm_ray.attack.protocol import AttackReport, attack_model
from sdm_ray.attack.space import SobolSampler
from sdm_ray.config.attack import FAMILIES
from sdm_ray.core.progress import run_through
from sdm_ray.core.types import Task
from sdm_ray.sweep.search.attack_sampler import TpeSampler
from sdm_ray.trial.assess import Assessment, assess
from sdm_ray.trial.release import Release
from sdm_ray.trial.workspace import open_workspace, trunk_params
from tests.fakes.attack_world import FakeData, TinyTrunk, drain, params_of, quick
from tests.golden import pins, worlds

OF_THE_WORLD = (
    "fine_tune",
    "full",
    "head",
    "linear_probe",
    "logistic_regression",
    "knn",
    "noise",
    "prune",
    "benign_first",
)
"""Families that need no more than a trunk of any kind."""
SLOW = ("benign_first", "masked_lm")
LATER = ("token_probe", "rescale", "attention_head", "graft", "composed")
"""Families that came after the values were taken; `tests/attack` holds them."""
NEW_FIELDS = ("reading", "position", "scaling", "readout", "pooling", "amounts")
"""Fields of attackers that came later: left out where they say nothing."""
UTILITY = ("utility/", "harmful/bounded", "cost/train_texts", "cost/train_flops")
"""Beginnings of the names of metrics that came later."""
KNOWING = ("interpolate", "masked_lm")
"""Families that random initialisation, the floor, cannot be attacked with."""
OPTIMIZERS = ("adam", "adamw", "momentum", "rmsprop", "adadelta", "adafactor", "lion")
SECONDS = ("seconds", "cost/attack_seconds", "cost/train_seconds")


def world(families: Sequence[str], folder: Path, **changes: Any) -> dict[str, Any]:
    """An attack on the small world, in float64."""
    settings: dict[str, Any] = {
        "families": tuple(families), "num_search_trials": 4, "num_rerun_seeds": 2, "num_steps_max": 20,
        **changes,
    }  # fmt: skip
    return of_report(attacked(TinyTrunk(dtype=torch.float64), **settings))


def attacked(trunk: nn.Module, *, num_classes: int = 2, **changes: Any) -> AttackReport:
    """An attack on a trunk of the small world."""
    data = FakeData(num_classes=num_classes)
    settings = quick(**changes)
    sampler: Any = TpeSampler if settings.sampler == "tpe" else SobolSampler
    return drain(attack_model(trunk, params_of(trunk), data, settings, sampler=sampler))


def compared(folder: Path) -> dict[str, Any]:
    """A report beside that of a floor and of an undefended model: regret, recovery, audit."""
    trunks = {
        name: TinyTrunk(seed=seed, dtype=torch.float64) for seed, name in enumerate(("mine", "floor", "undefended"))
    }
    changes = {"families": ("full", "head", "linear_probe"), "num_search_trials": 4, "num_examples": (20, "all")}
    reports = {name: attacked(trunk, **changes) for name, trunk in trunks.items()}
    data = FakeData()
    signals = {name: measure_signals(trunk, params_of(trunk), data, Task.HARMFUL, 0) for name, trunk in trunks.items()}
    target = target_accuracy(reports["undefended"], 0.9)
    return {
        "regret": regret(reports["mine"], reports["floor"]),
        "shares": recovered_shares(reports["mine"], reports["floor"], reports["undefended"]),
        "target": target,
        "recovery": cost_to_recover(reports["mine"], target).metrics(),
        "signals": signals,
        "audit": of_audit(audit(reports["mine"], signals=signals["mine"], floor_signals=signals["floor"])),
    }


def encoder(families: Sequence[str], kind: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Everything that is said of a released tiny encoder."""
    settings = worlds.trial(folder, kind, attack={"families": list(families), **changes})
    work = open_workspace(settings)
    trunk = work.trunk(settings.encoder, "pretrained", settings.seed)
    head = torch.randn(3, trunk.feature_dim, generator=torch.Generator().manual_seed(0))
    release = Release(
        trunk=trunk,
        params=trunk_params(trunk),
        encoder=settings.encoder,
        desired_head=head,
        trained_against=settings.train.adversary.supports(),
    )
    return of_assessment(run_through(assess(work, release, settings.attack, seed=1), lambda progress: None))


def of_assessment(found: Assessment) -> dict[str, Any]:
    """The parts of an assessment that are pinned."""
    return {
        "metrics": without_seconds(found.metrics),
        "report": of_report(found.report),
        "floor": [found.floor.worst_accuracy, of_report(found.floor)["records"]],
        "audit": of_audit(found.audit),
        "notes": list(found.notes),
        "benign": {name: without_seconds(report.metrics()) for name, report in found.benign.items()},
    }


def of_audit(found: Audit) -> dict[str, Any]:
    """An audit without the check that came after the values were taken."""
    return dataclasses.replace(found, checks=tuple(c for c in found.checks if c.name != "information")).to_json()


def of_report(report: AttackReport) -> dict[str, Any]:
    """The parts of an attack that are pinned."""
    records = [of_attacker(pins.plain(record)) | {"seconds": 0.0, "error": ""} for record in report.records]
    return {
        "metrics": pins.of_values(without_seconds(report.metrics())),
        "cells": [in_short(dataclasses.asdict(cell)) for cell in report.family_cells],
        "worst": [[cell.num_examples, cell.family] for cell in report.cells],
        "not_tried": list(report.not_tried),
        "sizes": [report.num_classes, report.num_validation, report.num_test, report.base_rate, len(records)],
        "records": pins.of_values(records),
    }


def in_short(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell, with its winner's settings as a digest."""
    known = {name: value for name, value in cell.items() if name != "desired_accuracy"}
    return {**known, "winner": pins.of_values(of_attacker(cell["winner"]))}


def of_attacker(values: dict[str, Any]) -> dict[str, Any]:
    """An attacker without the fields that came after the values were taken, where it does not use them."""
    return {
        name: value
        for name, value in values.items()
        if name != "desired_accuracy" and (name not in NEW_FIELDS or value)
    }


def without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics but those that a clock gives, and those that came after the values were taken."""
    return {
        name: value for name, value in metrics.items() if not name.endswith("seconds") and not name.startswith(UTILITY)
    }


WORLD: dict[str, Callable[[Path], Any]] = {
    **{family: partial(world, (family,)) for family in OF_THE_WORLD if family not in SLOW},
    "benign_first": partial(world, ("benign_first",), num_search_trials=2, num_examples=(20,), num_rerun_seeds=1),
    **{f"optimizer/{name}": partial(world, ("full",), optimizers=(name,), num_examples=(20,)) for name in OPTIMIZERS},
    "several-families": partial(world, ("fine_tune", "knn", "partial", "lora"), num_searches=2),
    "three-classes": partial(world, ("fine_tune",), num_classes=3, class_balanced=False),
    "halving": partial(world, ("full",), halving=True, num_search_seeds=2, num_examples=(20,)),
    "tpe": partial(world, ("full", "knn"), sampler="tpe", num_examples=(20,)),
    "compared": compared,
}
ENCODERS: dict[str, Callable[[Path], Any]] = {
    **{
        f"bert/{family}": partial(encoder, (family,), "bert", num_examples=[6])
        for family in FAMILIES
        if family not in (*SLOW, *KNOWING, *LATER)
    },
    "bert/interpolate": partial(encoder, ("knn", "interpolate"), "bert"),
    "modernbert/some": partial(encoder, ("fine_tune", "partial", "lora", "knn"), "modernbert", num_examples=[6]),
    "modernbert/masked_lm": partial(
        encoder, ("knn", "masked_lm"), "modernbert", num_examples=[4], num_search_trials=1, num_rerun_seeds=1
    ),
    "bert/benign": partial(encoder, ("fine_tune",), "bert", benign_num_examples=[6], benign_groups=2),
}
