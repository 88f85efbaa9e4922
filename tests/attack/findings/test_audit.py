"""What an audit makes of checks that references fail too."""

from __future__ import annotations

from typing import Any

import pytest

from sdm_ray.attack.findings.audit import Audit
from sdm_ray.attack.findings.checks import Check, attacker_support
from sdm_ray.attack.report import AttackRecord
from sdm_ray.config import AdversarySettings
from sdm_ray.config.starts import StartKind
from sdm_ray.config.support import overlaps


def audit_of(**passed: bool | None) -> Audit:
    return Audit(
        checks=tuple(Check(name=name, passed=value, value=0.0, said=f"{name} seen") for name, value in passed.items())
    )


def test_a_check_that_a_reference_fails_too_gates_nothing() -> None:
    own = audit_of(collapse=False, information=False, overlap=None)
    beside = own.beside(
        {
            "random initialisation": audit_of(collapse=False, information=True, overlap=False),
            "training from scratch": audit_of(collapse=False, information=None, overlap=None),
        }
    )
    assert [check.name for check in beside.failures] == ["information"]
    assert [check.name for check in beside.uninformative] == ["collapse"]
    said = beside.check("collapse").said
    assert said == "fails on random initialisation and training from scratch too: collapse seen"
    assert beside.check("overlap") == own.check("overlap"), "what failed nowhere stays as it is"


def test_an_audit_passes_when_all_that_failed_is_uninformative() -> None:
    own = audit_of(collapse=False)
    assert not own.passed
    assert own.beside({"random initialisation": audit_of(collapse=False)}).passed
    assert not own.beside({"random initialisation": audit_of(collapse=True)}).passed
    assert not own.beside({}).passed


def test_the_file_says_which_checks_are_uninformative() -> None:
    found = audit_of(collapse=False).beside({"random initialisation": audit_of(collapse=False)}).to_json()
    assert found["passed"] is True
    assert found["checks"][0]["uninformative"] is True


@pytest.mark.parametrize(
    ("start", "edit", "amounts"),
    [
        ("rescaled", "rescale_columns+rescale_gains", (1.0,)),
        ("redrawn_layers", "reinit", (1.0,)),
        ("pruned", "prune", (0.3,)),
        ("interpolated", "interpolate", (0.5,)),
        ("noise", "noise", (0.1, 0.1)),
    ],
)
def test_attackers_are_within_what_was_trained_against_if_their_edit_was_among_the_starts(
    start: StartKind, edit: str, amounts: tuple[float, ...]
) -> None:
    common: dict[str, Any] = {
        "family": "any",
        "num_examples": 4,
        "num_steps": 4,
        "batch_size": 8,
        "learning_rate": 1e-3,
    }
    record = _record(**common, edit=edit, amount=amounts[0], amounts=amounts if len(amounts) > 1 else ())
    stronger = _record(**common, edit=edit, amount=9.0)
    probe = _record(**common | {"trains": "probe", "amount": 3.0, "own_head": True})

    def within(one: AttackRecord, **starts: float) -> bool:
        values = {"starts": starts, "head": "reset"}
        return bool(overlaps([attacker_support(one)], AdversarySettings.model_validate(values).supports()))

    assert within(record, **{start: 0.5})
    assert not within(stronger, **{start: 0.5}), "by more than any adversary"
    assert not within(record, released=1.0)
    assert not within(probe, **{start: 0.5})
    plain = _record(**common, amount=0.0)
    assert within(plain, released=1.0)
    assert not within(plain, **{"released": 0.0, start: 0.5})


def _record(**values: Any) -> AttackRecord:
    return AttackRecord(status="ok", examples_seen=0, seconds=0.0, **values)
