"""Text output of an attack's findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from sdm_ray.cli.tables import walking_back
from sdm_ray.config import TrialSettings
from sdm_ray.config.attack import SHARING
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.verdict import few_reruns, verdict

if TYPE_CHECKING:
    from sdm_ray.attack.findings.checks import Check
    from sdm_ray.attack.findings.strength import Strength
    from sdm_ray.trial.assess import Assessment


def finding_lines(found: Assessment, strength: Strength, settings: TrialSettings) -> list[str]:
    """Lines of text: verdict, budget and forecast for a larger one, recovery, benign tasks, audit, warnings."""
    lines = [_verdict(found.metrics), _budget(settings), f"by extrapolation, {strength.describe()}"]
    if found.report.portfolio:
        lines.append(f"portfolio: {escape(_portfolio(found.report.portfolio))}")
    if found.report.walking_back:
        lines.append(f"walking back: {walking_back(found.report)}")
    share = found.metrics.get(str(Metric.RECOVERED_SHARE))
    if share is not None and share == share:
        lines.append(f"recovered: {share:.0%} of the public encoder's head start, mean over n")
    if found.recovery is not None and found.undefended_recovery is not None:
        theirs = found.undefended_recovery.describe()
        lines.append(f"cost to recover: {found.recovery.describe()}; for the public encoder, {theirs}")
    for name, report in found.benign.items():
        cells = ", ".join(f"{cell.accuracy:.3f} (n = {cell.num_examples})" for cell in report.cells)
        lines.append(f"benign trainability, {'desired task' if name == 'desired' else 'unseen grouping'}: {cells}")
    lines += _audit(found.audit.checks)
    few = few_reruns(settings.attack.num_rerun_seeds, settings.attack.num_searches)
    warnings = (*([] if few is None else [few]), *found.audit.warnings, *found.notes)
    lines += [f"warning: {escape(text)}" for text in warnings]
    lines.append(f"not tried: {_untried(found)}")
    return lines


def _audit(checks: Sequence[Check]) -> list[str]:
    """Failed and inapplicable checks with their findings, passed checks by name (`audit.json` has all)."""
    passed = [check.name.replace("_", " ") for check in checks if check.passed]
    lines = [f"audit, passed: {', '.join(passed)}"]
    for check in checks:
        if not check.passed:
            word = "not checked" if check.passed is None else "[bold red]FAILED[/]"
            word = "uninformative" if check.uninformative else word
            lines.append(f"audit, {check.name.replace('_', ' ')}: {word}: {escape(check.said)}")
    return lines


def _verdict(metrics: dict[str, float]) -> str:
    """The verdict as a line of markup."""
    found = verdict(metrics)
    assert found is not None  # every attack has random initialisation as a reference
    return f"[bold]{found.outcome}: {escape(found.reason)}[/] ({escape(found.figures)})."


def _budget(settings: TrialSettings) -> str:
    attack = settings.attack
    times = f", the whole {attack.num_searches} times" if attack.num_searches > 1 else ""
    shared = f" ({' and '.join(SHARING)} share them)" if attack.shares_search else ""
    halving = ", halved after each seed" if attack.halving else ""
    cheap = f", {attack.num_probe_trials} of token_probe" if "token_probe" in attack.families else ""
    return (
        f"attacker: {', '.join(attack.families)}; {attack.num_search_trials} search points by {attack.sampler}{cheap} "
        f"({attack.num_search_seeds} seed(s) each{halving}) and {attack.num_rerun_seeds} re-runs of each family at "
        f"each n{shared}{times}, {attack.num_steps_min} to {attack.num_steps_max} steps"
    )


def _portfolio(use: dict[str, Any]) -> str:
    won = f"won again: {', '.join(use['won'])}" if use["won"] else "none of them won"
    return f"{use['num_points']} winners of earlier searches were tried first, in {use['seconds']:.1f} s; {won}"


def _untried(found: Assessment) -> str:
    from sdm_ray.attack.families import FAMILIES

    asked = found.report.settings["families"]
    others = [name for name in FAMILIES if name not in asked]
    return escape(", ".join([*found.report.not_tried, *others]) or "no family that this version has")
