"""What an audit makes of checks that references fail too."""

from __future__ import annotations

from sdm_ray.attack.findings.audit import Audit
from sdm_ray.attack.findings.checks import Check


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
