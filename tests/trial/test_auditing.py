"""What a site may tell before it counts as hidden: what no honest reference tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from sdm_ray.attack.findings.audit import Audit
from sdm_ray.attack.findings.information import Told
from sdm_ray.attack.findings.signals import Signals
from sdm_ray.config import AttackSettings
from sdm_ray.trial import auditing
from sdm_ray.trial.auditing import audit_release
from tests.fakes.attack_world import FakeData, attack, drain

FOUND = attack(FakeData())
REPORT = dataclasses.replace(FOUND, cells=tuple(dataclasses.replace(cell, accuracy=0.55) for cell in FOUND.cells))
"""An attack that finds little."""


HEALTHY = Signals(effective_rank=10.0, relative_spread=1.0, sensitivity=1.0, best_decrease=1.0)


def told(accuracy: float) -> tuple[Told, ...]:
    return (Told(layer=1, accuracy=accuracy, low=accuracy - 0.02, high=accuracy + 0.02, reader="a reader"),)


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Audits a release from what its site tells, and those of the references; every other signal is healthy."""

    def run(*, release: float, **references: float) -> Audit:
        models = {name: SimpleNamespace(trunk=name, params={}) for name in references}
        accuracies = {"release": release, **references}
        mine = SimpleNamespace(trunk="release", params={}, trained_against=(), task=None)
        reports = dict.fromkeys(references, REPORT)
        work = SimpleNamespace(data=SimpleNamespace(shared_texts=lambda: None))
        monkeypatch.setattr(auditing, "measure_signals", lambda *_: HEALTHY)

        def told_by(_: object, model: Any, __: int) -> Generator[Any, None, tuple[Told, ...]]:
            yield from ()
            return told(accuracies[model.trunk])

        monkeypatch.setattr(auditing, "told_by", told_by)
        settings = AttackSettings()
        return drain(audit_release(work, mine, REPORT, models, settings, reports))  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize(
    ("release", "random", "scratch", "passed"),
    [
        (0.9, 0.55, 0.55, False),
        (0.75, 0.75, 0.55, True),  # what needs no pretraining is not hidden, whichever reference shows it
        (0.9, 0.75, 0.55, False),  # and does not excuse what neither tells
        (0.9, 0.75, None, False),
        (0.75, 0.75, None, True),
    ],
)
def test_a_site_is_hidden_where_no_honest_reference_tells_as_much(
    audited: Any, release: float, random: float, scratch: float | None, passed: bool
) -> None:
    references = {"random": random} | ({} if scratch is None else {"scratch": scratch})
    check = audited(release=release, **references).check("information")
    assert check.passed is passed
    assert not check.uninformative
