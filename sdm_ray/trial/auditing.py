"""Audit of a release, compared with audits of references that hide nothing."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from sdm_ray.attack.findings.audit import Audit, audit
from sdm_ray.attack.findings.information import beside
from sdm_ray.attack.findings.signals import measure_signals
from sdm_ray.attack.report import AttackReport
from sdm_ray.config import AttackSettings
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Task
from sdm_ray.trial.floors import Reference
from sdm_ray.trial.information import told_by
from sdm_ray.trial.release import Release
from sdm_ray.trial.workspace import Workspace

HONEST = {"random": "random initialisation", "scratch": "training from scratch"}
"""References that know nothing about the harmful task, and therefore hide nothing, with their names."""


def audit_release(
    work: Workspace,
    release: Release,
    report: AttackReport,
    references: Mapping[str, Reference],
    settings: AttackSettings,
    reports: Mapping[str, AttackReport],
) -> Generator[Progress, None, Audit]:
    """Audit a release's attack, relative to signals of random initialisation and the information in `scratch` (or, if
    that is missing, in random initialisation).

    If a check fails, random initialisation and `scratch`, which hide nothing, are audited in the same way. If one of
    them fails the information check, the floor at each site becomes the higher accuracy of the two.
    """
    random = references["random"]
    floor_signals = measure_signals(random.trunk, random.params, work.data, Task.HARMFUL, settings.seed)
    models: dict[str, tuple[AttackReport, Release | Reference]] = {"": (report, release)}
    models |= {name: (reports[name], references[name]) for name in HONEST if name in references}
    signals, told = {"random": floor_signals}, {}

    def judge(name: str, floors: Sequence[str]) -> Generator[Progress, None, Audit]:
        found, model = models[name]
        if name not in signals:
            signals[name] = measure_signals(model.trunk, model.params, work.data, Task.HARMFUL, settings.seed)
        for other in (name, *floors) if settings.measure_information else ():
            if other not in told:
                told[other] = yield from told_by(work, models[other][1], settings.seed)
        return audit(
            found,
            signals=signals[name],
            floor_signals=floor_signals,
            trained_against=release.trained_against,
            shared_texts=work.data.shared_texts(),
            information=beside(told[name], *(told[floor] for floor in floors)) if told else None,
        )

    own = yield from judge("", floors := ["scratch" if "scratch" in models else "random"])
    if own.passed:
        return own
    others: dict[str, Audit] = {}
    for name in [name for name in HONEST if name in models]:
        others[name] = yield from judge(name, floors)
    if any(other.check("information").passed is False for other in others.values()):
        own = yield from judge("", list(others))
        for name in others:
            others[name] = yield from judge(name, list(others))
    return own.beside({HONEST[name]: other for name, other in others.items()})
