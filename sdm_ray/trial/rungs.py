"""Attacks on a model during training, scored on validation examples; a sweep uses them to stop trials early."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.attack.protocol import attack_model
from sdm_ray.config import TrialSettings
from sdm_ray.config.train import UNTRAINED
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import MALFORMED, read_json, reason, write_json
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Split
from sdm_ray.trial.release import Release, knowledge_of

if TYPE_CHECKING:
    from sdm_ray.attack.protocol import AttackReport
    from sdm_ray.trial.workspace import Workspace

FILE = "rungs.json"


class Rungs:
    """Rungs of one trial; each is measured once, even if the trial is interrupted.

    Args:
        settings: the trial.
        folder: folder of `rungs.json`.
    """

    def __init__(self, settings: TrialSettings, folder: Path) -> None:
        self._settings, self._path = settings, folder / FILE
        self._measured: dict[int, dict[str, float]] = {}
        if settings.rungs and self._path.exists():
            try:
                self._measured = {int(step): dict(metrics) for step, metrics in read_json(self._path).items()}
            except MALFORMED as error:
                raise RunError(f"{self._path} is damaged ({reason(error)}); delete it to measure anew") from None

    @property
    def steps(self) -> tuple[int, ...]:
        """Outer steps of the rungs; empty without training."""
        if self._settings.train.method in (*UNTRAINED, "scratch"):
            return ()
        return tuple(rung.step for rung in self._settings.rungs)

    def measured_before(self) -> Generator[Progress, None, None]:
        """Measurements from before an interruption, reported again because the driver may have missed them."""
        for step, metrics in sorted(self._measured.items()):
            yield Progress("rung", step, self._settings.train.num_outer_steps, metrics)

    def is_due(self, step: int) -> bool:
        """Whether there is a rung at this outer step that has not been measured."""
        return step in self.steps and step not in self._measured

    def measure(self, step: int, work: Workspace, release: Release) -> Generator[Progress, None, None]:
        """Attack the model in its current state; yields progress and, last, the measurements."""
        assert release.desired_head is not None
        attack = self._settings.rung_attack(self.steps.index(step))
        report: AttackReport = yield from attack_model(
            release.trunk,
            release.params,
            work.data,
            attack,
            sampler=work.sampler(attack.sampler),
            knowledge=knowledge_of(work, release, attack),
        )
        accuracy, _ = desired_scores(release.trunk, release.params, release.desired_head, work.data, Split.ATTACKER_VAL)
        metrics = {Metric.rung_desired(step): accuracy, Metric.rung_harmful(step): worst_on_validation(report)}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._measured[step] = metrics
        write_json(self._path, {str(step): found for step, found in self._measured.items()})
        yield Progress("rung", step, self._settings.train.num_outer_steps, metrics)


def worst_on_validation(report: AttackReport) -> float:
    """Mean over n of the highest validation accuracy of any family; NaN if an n has no valid one."""
    worst: dict[int, float] = {}
    for cell in report.cells:
        value = cell.val_accuracy if cell.valid else -math.inf
        worst[cell.num_examples] = max(worst.get(cell.num_examples, -math.inf), value)
    values = list(worst.values())
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan
