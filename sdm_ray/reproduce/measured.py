"""Measurements of a suite's sweep, by model, training seed, attacker and n, read from its folder only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sdm_ray.attack.report import AttackReport
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status
from sdm_ray.core.statistics import t_interval
from sdm_ray.sweep.records.folder import begun_settings
from sdm_ray.sweep.state.ledger import read_record

WORST = "worst"
"""Name of the attacker that uses, at each n, the family with the highest validation accuracy."""
FLOOR = "random"
"""Name of the model whose accuracy after the attack is the floor."""


class Estimate(NamedTuple):
    """Mean over training seeds with its 95 % Student t interval; the interval is NaN for a single seed."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value per seed; NaN if there are none or one of them is NaN."""
        if not values or any(math.isnan(value) for value in values):
            return cls(math.nan, math.nan, math.nan)
        return cls(math.fsum(values) / len(values), *t_interval(values))


SIDES = {"harmful": Metric.KEPT_HARMFUL, "benign": Metric.KEPT_BENIGN, "desired": Metric.KEPT_DESIRED}
"""Metrics of head starts kept."""


@dataclass(frozen=True, kw_only=True)
class Released:
    """One training seed of a model, released and attacked."""

    desired: float
    """Accuracy on the desired task."""
    report: AttackReport
    audit_passed: bool = True
    kept: Mapping[str, float] = field(default_factory=dict)
    """Kept share of the head start by side, `harmful` or `benign`; a side that was not measured is missing."""
    conditions: tuple[str, ...] = ()
    """Data, attack, public encoder and outer steps of the sweep; results are comparable if all of them are equal."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of all models, in the order in which they ran, by training seed."""

    models: Mapping[str, Mapping[int, Released]]
    missing: Mapping[str, str] = field(default_factory=dict)
    """Reasons for missing results, by model of the sweep."""

    @property
    def conditions(self) -> set[tuple[str, ...]]:
        """Set of all measurement conditions; a single element if all models are comparable."""
        return {one.conditions for model in self.models.values() for one in model.values()}

    def with_models_of(self, other: Measured) -> Measured:
        """Add the models of another sweep that are not in this one, restricted to the training seeds of this one.

        Raises:
            UsageError: if data, encoder, attack or number of outer steps differ, or the other sweep lacks a training
                seed.
        """
        if len(self.conditions | other.conditions) != 1:
            raise UsageError("they met other data, another encoder or another attack, or trained for other outer steps")
        seeds = {seed for model in self.models.values() for seed in model}
        added = {
            name: {seed: one for seed, one in model.items() if seed in seeds}
            for name, model in other.models.items()
            if name not in self.models
        }
        if lacking := sorted({seed for model in added.values() for seed in seeds - model.keys()}):
            names = ", ".join(map(str, lacking))
            raise UsageError(f"they lack training seed {names}; add it there with --resume --set search.num_seeds=N")
        return Measured(models={**self.models, **added}, missing=self.missing)

    @property
    def families(self) -> tuple[str, ...]:
        """Attack families that were tried, in order of appearance."""
        cells = [cell for model in self.models.values() for one in model.values() for cell in one.report.family_cells]
        return tuple(dict.fromkeys(cell.family for cell in cells))

    @property
    def attackers(self) -> tuple[str, ...]:
        """All families, and `WORST`."""
        return (*self.families, WORST)

    @property
    def num_examples(self) -> tuple[int, ...]:
        """Sizes n at which every model was attacked, in increasing order."""
        sizes = [{cell.num_examples for cell in one.report.cells} for m in self.models.values() for one in m.values()]
        return tuple(sorted(set.intersection(*sizes))) if sizes else ()

    def desired(self, model: str) -> dict[int, float]:
        """Desired accuracy by training seed."""
        return {seed: one.desired for seed, one in self._of(model).items()}

    def harmful(self, model: str, attacker: str, num_examples: int | None = None) -> dict[int, float]:
        """Balanced test accuracy after the attack by training seed, at one n or as a mean over all n.

        NaN if a cell is invalid, or the family was not tried on this model.

        Raises:
            UsageError: for a model or an attacker that was not measured.
        """
        if attacker not in self.attackers:
            raise UsageError(f"attacker {attacker} was not tried; there are {', '.join(self.attackers)}")
        sizes = self.num_examples if num_examples is None else (num_examples,)
        return {
            seed: math.fsum(_cell_accuracy(one.report, attacker, size) for size in sizes) / len(sizes)
            for seed, one in self._of(model).items()
        }

    def kept(self, model: str, side: str) -> dict[int, float]:
        """Share of the public encoder's harmful, benign or desired (few-shot) head start that a model keeps, by seed.

        Raises:
            UsageError: for a model that was not measured, or whose sweep had no `scratch` or no benign tasks.
        """
        if any(side not in one.kept for one in self._of(model).values()):
            raise UsageError(f"no {side} head start was measured for {model}")
        return {seed: one.kept[side] for seed, one in self._of(model).items()}

    def head_start(self, model: str, attacker: str, num_examples: int | None = None) -> dict[int, float]:
        """Harmful accuracy minus that of random initialisation attacked with the same draws, by training seed."""
        return paired(self.harmful(model, attacker, num_examples), self.harmful(FLOOR, attacker, num_examples))

    def long_head_start(self, model: str, family: str, least_steps: int) -> dict[int, float]:
        """Head start of the best search point with at least `least_steps` steps, mean over n, on attacker-validation.

        Search points are scored on validation only. Random initialisation is attacked with the same points, so that
        selecting the best point biases both sides equally.
        """
        return paired(self._longest(model, family, least_steps), self._longest(FLOOR, family, least_steps))

    def _longest(self, model: str, family: str, least_steps: int) -> dict[int, float]:
        return {
            seed: math.fsum(_best_point(one.report, family, size, least_steps) for size in self.num_examples)
            / len(self.num_examples)
            for seed, one in self._of(model).items()
        }

    def _of(self, model: str) -> Mapping[int, Released]:
        if model not in self.models:
            reason = self.missing.get(model, "the sweep has no such model")
            raise UsageError(f"{model} was not measured: {reason}")
        return self.models[model]


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """First minus second, for the seeds that are in both."""
    return {seed: value - second[seed] for seed, value in first.items() if seed in second}


def read_measured(folder: Path) -> Measured:
    """Read the measurements of a sweep's references and variants; a model is missing if a recorded seed is incomplete.

    Raises:
        UsageError: if the sweep's settings cannot be read.
        RunError: if the ledger or an attack's file is damaged.
    """
    num_outer_steps = begun_settings(folder).trial.train.num_outer_steps
    models: dict[str, dict[int, Released]] = {}
    missing: dict[str, str] = {}
    for entry in read_record(folder).entries.values():
        if entry.role != "reference":
            continue
        seeds, result = models.setdefault(entry.point, {}), entry.result
        if result is None or result.status is not Status.COMPLETE:
            missing[entry.point] = f"{entry.trial_id} {'has not ended' if result is None else result.error}"
            continue
        seeds[result.seed] = Released(
            desired=result.metrics[Metric.DESIRED_ACCURACY],
            report=AttackReport.read_json(result.output_dir / "attack.json"),
            kept={side: result.metrics[name] for side, name in SIDES.items() if name in result.metrics},
            audit_passed=bool(result.metrics.get(Metric.AUDIT_PASSED, 1.0)),
            conditions=(
                *(result.provenance.get(name, "") for name in ("data", "attack", "encoder_name")),
                f"{num_outer_steps} outer steps",
            ),
        )
    return Measured(models={name: m for name, m in models.items() if name not in missing}, missing=missing)


def _cell_accuracy(report: AttackReport, attacker: str, num_examples: int) -> float:
    if attacker == WORST:
        found = next((cell for cell in report.cells if cell.num_examples == num_examples), None)
    else:
        found = report.cell(attacker, num_examples)
    return found.accuracy if found is not None and found.valid else math.nan


def _best_point(report: AttackReport, family: str, num_examples: int, least_steps: int) -> float:
    scores: dict[tuple[int, int], list[float]] = {}
    for record in report.records:
        same = (record.family, record.num_examples, record.phase) == (family, num_examples, "search")
        if same and record.num_steps >= least_steps and not math.isnan(record.val_accuracy):
            scores.setdefault((record.repeat, record.trial), []).append(record.val_accuracy)
    if not scores:
        raise UsageError(f"{family} has no search point of {least_steps} steps or more at n = {num_examples}")
    return max(math.fsum(values) / len(values) for values in scores.values())
