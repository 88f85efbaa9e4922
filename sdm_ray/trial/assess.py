"""One released model under attack: with floors, ceiling, audit, cost to recover and benign trainability beside it.

A trial ends with it, and `sdm-ray attack` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdm_ray.attack.findings.audit import Audit, audit
from sdm_ray.attack.findings.benign import GroupedData
from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.attack.findings.recovery import Recovery, cost_to_recover, recovered_shares, target_accuracy
from sdm_ray.attack.findings.regret import regret
from sdm_ray.attack.findings.signals import measure_signals
from sdm_ray.attack.protocol import AttackReport, RunnerFactory, attack_model
from sdm_ray.config import AttackSettings, EncoderSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import write_json
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Split, Task
from sdm_ray.data.interface import AttackDataset
from sdm_ray.models.encoder import Trunk
from sdm_ray.trial.floors import floor_report, floor_reports
from sdm_ray.trial.release import Release, knowledge_of, own_knowledge
from sdm_ray.trial.workspace import Initialisation, Workspace, trunk_params

if TYPE_CHECKING:
    pass

BENIGN = {"desired": "the desired task", "grouped": "an unseen grouping of its classes"}
"""Benign tasks by their names in metrics."""
BenignTask = Literal["desired", "grouped"]


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """The attack on a released model, what it is compared with, and the metrics of both."""

    report: AttackReport
    floor: AttackReport
    """The same attack on random initialisation."""
    undefended: AttackReport | None
    """The same attack on the public encoder; None where that is not known."""
    audit: Audit
    recovery: Recovery | None
    undefended_recovery: Recovery | None
    benign: dict[str, AttackReport] = field(default_factory=dict)
    """Attacks on benign tasks, by name."""
    notes: tuple[str, ...] = ()
    """What was asked for and not measured, with the reason."""
    metrics: dict[str, float] = field(default_factory=dict)
    """By the names of `Metric`."""

    def write(self, folder: Path) -> None:
        """Write `attack.parquet` (a row a fine-tune), `attack.json` and `audit.json`, each atomically."""
        self.report.write_parquet(folder / "attack.parquet")
        self.report.write_json(folder / "attack.json")
        write_json(folder / "audit.json", self.audit.to_json() | {"notes": list(self.notes)})


def assess(
    work: Workspace, release: Release, settings: AttackSettings, *, seed: int, runner: RunnerFactory | None = None
) -> Generator[Progress, None, Assessment]:
    """Attack a released model, and what it is compared with.

    Floors, ceilings and benign tasks of untrained encoders are kept on disk by content, so many trials pay for them
    once.

    Args:
        work: data and device.
        release: the model.
        settings: the attack.
        seed: of random initialisation.
        runner: makes what runs the fine-tunes in place of this process.

    Raises:
        UsageError: for an attack that the data cannot carry.
        RunError: when every fine-tune crashed.
        ValueError: for a release without encoder and architecture.
    """
    public = release.encoder
    encoder = release.architecture or release.encoder
    if encoder is None:
        raise ValueError("a release needs an encoder or an architecture, or there is no floor to compare it with")
    if release.untrained is not None:
        report = yield from floor_report(work, encoder, settings, release.untrained, seed, runner)
    else:
        report = yield from _attack(work, release, settings, runner)
    encoders: dict[Initialisation, EncoderSettings] = {"random": encoder}
    if public is not None:
        encoders["pretrained"] = public
    floors = yield from floor_reports(work, encoders, settings, seed, runner)
    floor, undefended = floors["random"], floors.get("pretrained")
    benign, notes = yield from _benign(work, release, settings, runner)
    checked = _audit(work, release, report, work.trunk(encoder, "random", seed), settings)
    recovery = theirs = None
    if undefended is not None:
        target = target_accuracy(undefended, settings.recovery_share)
        recovery, theirs = cost_to_recover(report, target), cost_to_recover(undefended, target)
    assessment = Assessment(
        report=report,
        floor=floor,
        undefended=undefended,
        audit=checked,
        recovery=recovery,
        undefended_recovery=theirs,
        benign=benign,
        notes=notes,
    )
    assessment.metrics.update(_metrics(work, release, assessment))
    return assessment


def _attack(
    work: Workspace, release: Release, settings: AttackSettings, runner: RunnerFactory | None
) -> Generator[Progress, None, AttackReport]:
    """The attack on the harmful task, with everything that is public about the release."""
    report = yield from attack_model(
        release.trunk,
        release.params,
        work.data,
        settings,
        sampler=work.sampler(settings.sampler),
        knowledge=knowledge_of(work, release, settings),
        runner=runner,
    )
    return report


def _audit(work: Workspace, release: Release, report: AttackReport, random: Trunk, settings: AttackSettings) -> Audit:
    """The audit of a release's attack, with the signals of random initialisation beside its own."""
    return audit(
        report,
        signals=measure_signals(release.trunk, release.params, work.data, Task.HARMFUL, settings.seed),
        floor_signals=measure_signals(random, trunk_params(random), work.data, Task.HARMFUL, settings.seed),
        trained_against=release.trained_against,
        shared_texts=work.data.shared_texts(),
    )


def _benign(
    work: Workspace, release: Release, settings: AttackSettings, runner: RunnerFactory | None
) -> Generator[Progress, None, tuple[dict[str, AttackReport], tuple[str, ...]]]:
    """The same search on benign tasks; a task that the data cannot carry is noted instead."""
    if not settings.benign_num_examples:
        return {}, ()
    changes = {
        "num_examples": settings.benign_num_examples,
        "class_balanced": False,
        "benign_num_examples": (),
        "preset": None,
    }
    chosen = AttackSettings.model_validate(settings.model_dump() | changes)
    tasks: dict[str, AttackDataset] = {"desired": work.data}
    if work.data.num_classes(Task.DESIRED) > settings.benign_groups:
        tasks["grouped"] = GroupedData(work.data, settings.benign_groups)
    reports, notes = {}, []
    for name, data in tasks.items():
        try:
            reports[name] = yield from attack_model(
                release.trunk,
                release.params,
                data,
                chosen,
                task=Task.DESIRED,
                sampler=work.sampler(settings.sampler),
                knowledge=own_knowledge(release.trunk),
                runner=runner,
            )
        except UsageError as error:
            notes.append(f"benign trainability on {BENIGN[name]} was not measured: {error}")
    return reports, tuple(notes)


def _metrics(work: Workspace, release: Release, found: Assessment) -> dict[str, float]:
    """Every metric of a released model, by the names in `Metric`; what a model does not have is left out."""
    metrics = found.report.metrics() | regret(found.report, found.floor)
    if release.desired_head is not None:
        accuracy, loss = desired_scores(release.trunk, release.params, release.desired_head, work.data, Split.TEST)
        metrics |= {str(Metric.DESIRED_ACCURACY): accuracy, str(Metric.DESIRED_LOSS): loss}
    beside = {str(Metric.AUDIT_GAP): found.audit.check("held_out_gap").value}
    if found.undefended is not None and found.recovery is not None:
        beside |= recovered_shares(found.report, found.floor, found.undefended) | found.recovery.metrics()
    for name, report in found.benign.items():
        beside |= {Metric.benign(name, cell.num_examples): cell.accuracy for cell in report.cells}
    measured = {name: value for name, value in beside.items() if not math.isnan(value)}
    return metrics | measured | {str(Metric.AUDIT_PASSED): float(found.audit.passed)}
