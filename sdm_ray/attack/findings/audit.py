"""Audit of an attack: signs that a defence is only apparent (masked gradients, hidden signals) or the attack weak.

A failed check excludes a point from the frontier, unless an undefended reference fails it too: then the check is
uninformative. Thresholds are constants in `checks.py`; each check reports its finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sdm_ray.attack.findings.checks import (
    Check,
    check_collapse,
    check_complete,
    check_gradient_masking,
    check_held_out,
    check_information,
    check_label_flip,
    check_overlap,
    check_scale_free,
    check_search_failure,
    check_sub_chance,
)
from sdm_ray.attack.findings.information import Site
from sdm_ray.attack.findings.signals import Signals
from sdm_ray.attack.report import AttackReport
from sdm_ray.config.support import Support


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All checks of an attack."""

    checks: tuple[Check, ...]
    warnings: tuple[str, ...] = ()
    """Reservations about the result that do not fail a check."""

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """Failed checks."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def uninformative(self) -> tuple[Check, ...]:
        """Failed but uninformative checks."""
        return tuple(check for check in self.checks if check.uninformative)

    def beside(self, references: Mapping[str, Audit]) -> Audit:
        """Copy of the audit in which checks that a reference fails too are uninformative.

        Args:
            references: audits of undefended models, by name.
        """

        def weighed(check: Check) -> Check:
            too = [name for name, other in references.items() if other.check(check.name).passed is False]
            if check.passed is not False or not too:
                return check
            return replace(
                check, passed=None, uninformative=True, said=f"fails on {' and '.join(too)} too: {check.said}"
            )

        return replace(self, checks=tuple(map(weighed, self.checks)))

    def check(self, name: str) -> Check:
        """Check by name."""
        return next(check for check in self.checks if check.name == name)

    def to_json(self) -> dict[str, Any]:
        """JSON values, with null for NaN."""
        checks = [asdict(check) for check in self.checks]
        for check in checks:
            check["value"] = None if math.isnan(check["value"]) else check["value"]
            if not check["uninformative"]:
                del check["uninformative"]
        return {"passed": self.passed, "checks": checks, "warnings": list(self.warnings)}


def audit(
    report: AttackReport,
    *,
    signals: Signals,
    floor_signals: Signals,
    trained_against: Sequence[Support] = (),
    shared_texts: dict[str, int] | None = None,
    information: Sequence[Site] | None = None,
) -> Audit:
    """Run all checks on an attack.

    Args:
        report: report of the attack on the released model.
        signals: diagnostics of its weights.
        floor_signals: diagnostics of random initialisation, for comparison.
        trained_against: attackers that meta-training's adversaries cover; empty if there were no adversaries.
        shared_texts: number of texts that two splits share, by the splits' names; None if it is unknown.
        information: accuracy of readers with all labels at each site; None if it was not measured.
    """
    checks = (
        check_complete(report),
        check_label_flip(report),
        check_sub_chance(report),
        check_collapse(report, signals, floor_signals),
        check_gradient_masking(report, signals, floor_signals),
        check_scale_free(report),
        check_search_failure(report),
        check_held_out(report, trained_against),
        check_overlap(shared_texts),
        check_information(report, information),
    )
    return Audit(checks=checks, warnings=_warnings(report))


def _warnings(report: AttackReport) -> tuple[str, ...]:
    rising = [cell for cell in report.family_cells if cell.valid and not cell.flattened]
    if not rising:
        return ()
    where = ", ".join(f"{cell.family} at n = {cell.num_examples}" for cell in rising[:4])
    more = f" and {len(rising) - 4} more" if len(rising) > 4 else ""
    return (f"the search had not flattened: {where}{more}; give it more trials",)
