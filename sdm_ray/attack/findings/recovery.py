"""Accuracy that an attacker recovers and its cost, relative to the same attack on the undefended encoder."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from sdm_ray.attack.findings.kept import paired_cells, share_of
from sdm_ray.attack.report import AttackReport, Cell
from sdm_ray.config.attack import WALKING_BACK
from sdm_ray.core.metric_names import Metric


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Lowest cost at which an attacker reaches a target accuracy. If it is not reached, costs are NaN: they exceed the
    largest budget that was tried (`largest_examples`)."""

    target: float
    """Balanced accuracy that counts as recovered."""
    examples: float
    """Smallest n at which the strongest attack reaches the target on test."""
    steps: float
    """Median over the re-runs at that n of the first step that reaches it on attacker-validation."""
    trials: float
    """Search points, counted family by family up to the winner, until one reaches it on attacker-validation."""
    flops: float
    """FLOPs of these search points."""
    largest_examples: int
    """Largest n that was tried."""

    @property
    def reached(self) -> bool:
        """Whether an attack reached the target."""
        return not math.isnan(self.examples)

    def describe(self) -> str:
        """Summary in one sentence."""
        if not self.reached:
            return f"{self.target:.3f} was not reached with up to {self.largest_examples} examples"
        steps = "" if math.isnan(self.steps) else f", {self.steps:.0f} steps"
        trials = "" if math.isnan(self.trials) else f", {self.trials:.0f} search points ({self.flops:.1e} FLOPs)"
        return f"{self.target:.3f} takes {self.examples:.0f} examples{steps}{trials}"

    def metrics(self) -> dict[str, float]:
        """Metrics by name."""
        return {
            str(Metric.RECOVERY_EXAMPLES): self.examples,
            str(Metric.RECOVERY_STEPS): self.steps,
            str(Metric.RECOVERY_TRIALS): self.trials,
            str(Metric.RECOVERY_FLOPS): self.flops,
        }


def target_accuracy(undefended: AttackReport, share: float) -> float:
    """Chance plus a share of the strongest attack's margin over chance on the undefended encoder, at its best n."""
    chance = 1 / undefended.num_classes
    best = max((cell.accuracy for cell in undefended.cells if cell.valid), default=math.nan)
    return chance + share * (best - chance)


def cost_to_recover(report: AttackReport, target: float) -> Recovery:
    """Lowest cost at which the attack of a report reaches a balanced accuracy."""
    reached = [cell for cell in report.cells if cell.valid and cell.accuracy >= target]
    largest = max(cell.num_examples for cell in report.cells)
    if not reached:
        nothing = math.nan
        return Recovery(
            target=target, examples=nothing, steps=nothing, trials=nothing, flops=nothing, largest_examples=largest
        )
    cell = reached[0]
    trials, flops = _search_cost(report, cell, target)
    return Recovery(
        target=target,
        examples=float(cell.num_examples),
        steps=_steps(report, cell, target),
        trials=trials,
        flops=flops,
        largest_examples=largest,
    )


def _steps(report: AttackReport, cell: Cell, target: float) -> float:
    firsts = []
    for record in report.records:
        if (record.phase, record.family, record.num_examples) != ("rerun", cell.family, cell.num_examples):
            continue
        if not record.val_accuracy_curve:
            continue
        points = zip(record.curve_steps, record.val_accuracy_curve, strict=True)
        firsts.append(next((float(step) for step, accuracy in points if accuracy >= target), math.inf))
    median = statistics.median(firsts) if firsts else math.nan
    return median if math.isfinite(median) else math.nan


def _search_cost(report: AttackReport, cell: Cell, target: float) -> tuple[float, float]:
    """Points and FLOPs of the first search at a cell's n: all of the other families', the winner's up to the target."""
    count, flops = 0, 0.0
    for other in report.family_cells:
        if other.num_examples != cell.num_examples or other.family in WALKING_BACK:
            continue
        own = other.family == cell.family
        for trial, best in enumerate(other.best_so_far):
            count += 1
            flops += sum(
                record.flops
                for record in report.records
                if (record.phase, record.family, record.num_examples, record.repeat, record.trial)
                == ("search", other.family, other.num_examples, 0, trial)
            )
            if own and best >= target:
                return float(count), flops
        if own:
            break
    return math.nan, math.nan


def recovered_shares(report: AttackReport, floor: AttackReport, undefended: AttackReport) -> dict[str, float]:
    """Share of the undefended encoder's head start over random initialisation that the attack recovers, by n.

    1 is all of it, 0 none. Seeds are paired; intervals are 95 % bootstraps of the ratio of means over seeds. NaN if the
    undefended encoder has too small a head start itself.
    """
    cells = paired_cells(report, floor, undefended)
    result: dict[str, float] = {}
    for cell, paired in zip(report.cells, cells, strict=True):
        result |= share_of(Metric.recovered_share(cell.num_examples), [paired])
    return result | share_of(str(Metric.RECOVERED_SHARE), cells)
