"""Assessment of a released model: attack, floors, ceiling, audit, cost to recover, and benign trainability.

It is the last part of a trial; `sdm-ray attack` runs it too.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdm_ray.attack.findings.audit import Audit
from sdm_ray.attack.findings.benign import benign_data
from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.attack.findings.kept import Trio, above, exceeds, kept_metrics
from sdm_ray.attack.findings.recovery import Recovery, cost_to_recover, recovered_shares, target_accuracy
from sdm_ray.attack.findings.regret import regret
from sdm_ray.attack.protocol import AttackReport, RunnerFactory, attack_model
from sdm_ray.config import AttackSettings, EncoderSettings, ScratchSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import write_json
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Split, Task
from sdm_ray.data.interface import AttackDataset, labelled
from sdm_ray.trial.auditing import audit_release
from sdm_ray.trial.cached import in_turns
from sdm_ray.trial.floors import Reference, reference_reports
from sdm_ray.trial.information import told_by
from sdm_ray.trial.own_metrics import Measured, own_metrics
from sdm_ray.trial.release import Release, knowledge_of, own_knowledge
from sdm_ray.trial.scratch import Scratch, train_scratch
from sdm_ray.trial.workspace import Workspace

BENIGN = {
    "desired": "the desired task",
    "grouped": "an unseen grouping of its classes",
    "held_out": "desired classes that no training saw",
}
"""Benign tasks by their names in metrics; the others are columns of the data."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """Attack on a released model, reports of its references, and all metrics."""

    report: AttackReport
    floor: AttackReport
    """Same attack on random initialisation."""
    undefended: AttackReport | None
    """Same attack on the public encoder; None if the encoder is unknown."""
    scratch: AttackReport | None = None
    """Same attack on random initialisation trained on the desired task; None if not requested."""
    audit: Audit
    recovery: Recovery | None
    undefended_recovery: Recovery | None
    benign: dict[str, AttackReport] = field(default_factory=dict)
    """Attacks on benign tasks, by name."""
    notes: tuple[str, ...] = ()
    """Requested measurements that were skipped, with the reason."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Values by the names of `Metric`."""

    def checks(self) -> dict[str, Any]:
        """Fields of a trial's result: observations of failed checks of the audit, by check."""
        failed, uninformative = self.audit.failures, self.audit.uninformative
        return {
            "failed_checks": {check.name: check.said for check in failed},
            "uninformative_checks": {check.name: check.said for check in uninformative},
        }

    def write(self, folder: Path) -> None:
        """Write `attack.parquet` (one row per fine-tune), `attack.json` and `audit.json`, each atomically."""
        self.report.write_parquet(folder / "attack.parquet")
        self.report.write_json(folder / "attack.json")
        write_json(folder / "audit.json", self.audit.to_json() | {"notes": list(self.notes)})


def assess(
    work: Workspace,
    release: Release,
    settings: AttackSettings,
    *,
    seed: int,
    runner: RunnerFactory | None = None,
    scratch: ScratchSettings | None = None,
) -> Generator[Progress, None, Assessment]:
    """Attack a released model and its references.

    Floors, ceilings and benign tasks of untrained encoders are cached on disk by content hash, so that trials share
    them.

    Args:
        work: data and device.
        release: the released model.
        settings: settings of the attack.
        seed: seed of random initialisation.
        runner: factory of the executor of fine-tunes; None runs them in this process.
        scratch: training of the reference `scratch`; None omits the reference.

    Raises:
        UsageError: if the data are too small for the attack.
        RunError: if every fine-tune crashed.
        ValueError: for a release without encoder and architecture.
    """
    public = release.encoder
    encoder = release.architecture or release.encoder
    if encoder is None:
        raise ValueError("a release needs an encoder or an architecture, or there is no floor to compare it with")
    references, trained = yield from _references(work, public, encoder, settings, seed, runner, scratch)
    if release.shared is None:
        report = yield from _attack(work, release, settings, runner)
    else:
        shared = yield from reference_reports(work, {release.shared: references[release.shared]}, settings, runner)
        report = shared[release.shared]
    reports = yield from reference_reports(work, references, settings, runner)
    floor, undefended = reports["random"], reports.get("pretrained")
    benign, notes = yield from _benign(work, release, settings, references, runner)
    checked = yield from audit_release(work, release, report, references, settings, reports)
    recovery = theirs = None
    if undefended is not None:
        target = target_accuracy(undefended, settings.recovery_share)
        recovery, theirs = cost_to_recover(report, target), cost_to_recover(undefended, target)
    assessment = Assessment(
        report=report,
        floor=floor,
        undefended=undefended,
        scratch=reports.get("scratch"),
        audit=checked,
        recovery=recovery,
        undefended_recovery=theirs,
        benign={name: by_model["released"] for name, by_model in benign.items()},
        notes=notes,
    )
    assessment.metrics.update(_metrics(work, release, assessment))
    if trained is not None:
        assessment.metrics.update(_scratch_metrics(work, assessment, trained, benign))
    measured = Measured(
        trunk=release.trunk,
        params=release.params,
        desired_head=release.desired_head,
        data=work.data,
        report=report,
        metrics=dict(assessment.metrics),
    )
    assessment.metrics.update(own_metrics(measured))
    return assessment


def _references(
    work: Workspace,
    public: EncoderSettings | None,
    encoder: EncoderSettings,
    settings: AttackSettings,
    seed: int,
    runner: RunnerFactory | None,
    scratch: ScratchSettings | None,
) -> Generator[Progress, None, tuple[dict[str, Reference], Scratch | None]]:
    """References of a release. Fills the cache of their reports; concurrent trials share the work."""
    references = {"random": Reference.untrained(work, encoder, "random", settings, seed)}
    if public is not None:
        references["pretrained"] = Reference.untrained(work, public, "pretrained", settings, seed)

    def about(some: Mapping[str, Reference]) -> list[Generator[Progress, None, Any]]:
        harmful = [reference_reports(work, {name: one}, settings, runner) for name, one in some.items()]
        between = {name: one for name, one in some.items() if name != "random"}
        return harmful + [_benign_references(work, between, settings, runner, task) for task in tasks.items()]

    tasks = benign_data(work.data, settings.benign_groups) if settings.benign_num_examples and scratch else {}
    if scratch is None:
        yield from in_turns(*about(references))
        return references, None
    trained, *_ = yield from in_turns(train_scratch(work, encoder, scratch, seed), *about(references))
    last = {"scratch": Reference.from_scratch(trained)}
    sites = [told_by(work, last["scratch"], settings.seed)] if settings.measure_information else []
    yield from in_turns(*sites, *about(last))
    return references | last, trained


def _benign_references(
    work: Workspace,
    references: Mapping[str, Reference],
    settings: AttackSettings,
    runner: RunnerFactory | None,
    task: tuple[str, AttackDataset],
) -> Generator[Progress, None, None]:
    """Attack references on a benign task; skip it if the data are too small (the release reports that)."""
    with suppress(UsageError):
        yield from reference_reports(work, references, settings.for_benign_tasks(), runner, task)


def _attack(
    work: Workspace, release: Release, settings: AttackSettings, runner: RunnerFactory | None
) -> Generator[Progress, None, AttackReport]:
    """Attack the harmful task, with all public knowledge about the release."""
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


def _benign(
    work: Workspace,
    release: Release,
    settings: AttackSettings,
    references: Mapping[str, Reference],
    runner: RunnerFactory | None,
) -> Generator[Progress, None, tuple[dict[str, dict[str, AttackReport]], tuple[str, ...]]]:
    """Attack the release (`released`) and the references of head starts on benign tasks, with the same search.

    A task that the data are too small for becomes a note instead.
    """
    if not settings.benign_num_examples:
        return {}, ()
    chosen = settings.for_benign_tasks()
    between = {name: references[name] for name in ("scratch", "pretrained") if name in references}
    if len(between) < 2:
        between = {}
    found: dict[str, dict[str, AttackReport]] = {}
    notes = []
    for name, data in benign_data(work.data, settings.benign_groups).items():
        try:
            reports = yield from reference_reports(work, between, chosen, runner, (name, data))
            if release.shared in reports:
                reports["released"] = reports[release.shared]
            else:
                reports["released"] = yield from attack_model(
                    release.trunk,
                    release.params,
                    data,
                    chosen,
                    task=Task.DESIRED,
                    sampler=work.sampler(settings.sampler),
                    knowledge=own_knowledge(release.trunk),
                    runner=runner,
                )
            found[name] = reports
        except UsageError as error:
            notes.append(f"benign trainability on {BENIGN.get(name, name)} was not measured: {error}")
    return found, tuple(notes)


def _metrics(work: Workspace, release: Release, found: Assessment) -> dict[str, float]:
    """All metrics of a released model by the names in `Metric`; those that do not apply are left out."""
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


def _scratch_metrics(
    work: Workspace, found: Assessment, scratch: Scratch, benign: Mapping[str, Mapping[str, AttackReport]]
) -> dict[str, float]:
    """Head starts kept, and whether the reference `scratch` does as well without the encoder."""
    assert found.scratch is not None
    desired, _ = desired_scores(scratch.trunk, scratch.params, scratch.head, work.data, Split.TEST)
    harmful = found.scratch.metrics()[str(Metric.HARMFUL_WORST_ACCURACY)]
    over, low, high = above(found.report, found.scratch)
    regret_name = str(Metric.SCRATCH_REGRET)
    metrics = {
        str(Metric.SCRATCH_DESIRED): desired,
        str(Metric.SCRATCH_HARMFUL): harmful,
        regret_name: over,
        Metric.low(regret_name): low,
        Metric.high(regret_name): high,
    }
    if found.undefended is not None:
        trios = {
            name: Trio(reports["released"], reports["scratch"], reports["pretrained"])
            for name, reports in benign.items()
            if "scratch" in reports
        }
        metrics |= kept_metrics(Trio(found.report, found.scratch, found.undefended), trios)
    metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
    if str(Metric.DESIRED_ACCURACY) in found.metrics and not math.isnan(high):
        num_test = len(labelled(work.data, work.data.indices(Split.TEST), Task.DESIRED))
        better = exceeds(found.metrics[str(Metric.DESIRED_ACCURACY)], desired, num_test)
        keeps = [metrics.get(Metric.low(str(name)), -1.0) > 0 for name in (Metric.KEPT_BENIGN, Metric.KEPT_DESIRED)]
        metrics[str(Metric.SCRATCH_DOMINATES)] = float(not (better or any(keeps) or high < 0))
    return metrics
