"""Writes the results of a suite: tables, figures, verdicts, and a report with all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdm_ray.config import SweepSettings
from sdm_ray.config.attack import FAMILIES
from sdm_ray.core.files import atomic_path, write_json, write_text
from sdm_ray.figures.curves import Curve, attack_curves_figure
from sdm_ray.figures.style import LABELS, model_styles
from sdm_ray.reproduce.claims import Finding, judge
from sdm_ray.reproduce.expectations import PAPER_ATTACKER
from sdm_ray.reproduce.measured import FLOOR, WORST, Estimate, Measured
from sdm_ray.reproduce.suites import Suite

TABLE, MARKDOWN, CLAIMS = "table.parquet", "report.md", "claims.json"


def write_reproduction(suite: Suite, settings: SweepSettings, measured: Measured, folder: Path) -> list[Finding]:
    """Write `table.parquet`, `claims.json`, `report.md` and the figures, each atomically; returns the findings.

    Args:
        suite: suite with the claims and figures.
        settings: settings of the sweep.
        measured: measurements of the sweep.
        folder: folder for the files.

    Raises:
        RunError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attackers = [name for name in (PAPER_ATTACKER, WORST) if name in measured.attackers]
    findings = [finding for attacker in attackers for finding in judge(suite.claims, measured, attacker)]
    rows = table_rows(measured)
    with atomic_path(folder / TABLE) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    write_json(folder / CLAIMS, [_plain(finding) for finding in findings])
    pictures = [path for attacker in attackers for path in _figures(suite, measured, attacker, folder)]
    write_text(folder / MARKDOWN, _report(suite, settings, measured, findings, pictures))
    return findings


def table_rows(measured: Measured) -> list[dict[str, Any]]:
    """Rows for each model, attacker and n (`num_examples` 0 is the mean over n); NaN is converted to None."""
    rows = []
    for model, seeds in measured.models.items():
        desired = Estimate.of(list(measured.desired(model).values()))
        for attacker in measured.attackers:
            for size in (*measured.num_examples, None):
                row: dict[str, Any] = {"model": model, "attacker": attacker, "num_examples": size or 0}
                row |= {"num_seeds": len(seeds)}
                harmful = Estimate.of(list(measured.harmful(model, attacker, size).values()))
                row |= _columns("harmful", harmful) | _columns("desired", desired)
                if FLOOR in measured.models:
                    ahead = measured.head_start(model, attacker, size)
                    row |= _columns("head_start", Estimate.of(list(ahead.values())))
                rows.append(row)
    return rows


def models_table(measured: Measured, attacker: str) -> list[list[str]]:
    """Table (header, then one row per model) of desired accuracy, harmful accuracy at each n, its mean, head start."""
    sizes = measured.num_examples
    header = ["model", "desired", *(f"n = {size}" for size in sizes), "mean over n", "head start"]
    rows = [header]
    for model in measured.models:
        cells = [Estimate.of(list(measured.harmful(model, attacker, size).values())) for size in sizes]
        mean = Estimate.of(list(measured.harmful(model, attacker).values()))
        ahead = Estimate.of([])
        if FLOOR in measured.models and model != FLOOR:
            ahead = Estimate.of(list(measured.head_start(model, attacker).values()))
        rows.append(
            [
                LABELS.get(model, model),
                _number(Estimate.of(list(measured.desired(model).values())).mean),
                *(_number(cell.mean) for cell in cells),
                _number(mean.mean),
                with_interval(ahead, signed=True),
            ]
        )
    return rows


def leaderboard(measured: Measured) -> list[list[str]]:
    """Table of harmful accuracy by model (rows) and attack family (columns), mean over n; strongest family in bold."""
    rows = [["model", *measured.families, "worst at each n"]]
    for model in measured.models:
        means = [Estimate.of(list(measured.harmful(model, name).values())).mean for name in measured.attackers]
        known = [value for value in means[:-1] if not math.isnan(value)]
        top = max(known) if known else math.nan
        cells = [f"**{_number(value)}**" if value == top else _number(value) for value in means[:-1]]
        rows.append([LABELS.get(model, model), *cells, _number(means[-1])])
    return rows


def markdown_table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Format a header and rows as a Markdown table, with the first `left` columns left-aligned."""
    rule = ["---" if index < left else "---:" for index in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def claims_table(findings: Sequence[Finding], attacker: str) -> list[list[str]]:
    """Table (header, then one row per claim) of claim, expected bound, measured value and verdict."""
    rows = [["claim", "expected", "measured", "verdict"]]
    for finding in findings:
        if finding.attacker == attacker:
            source = "" if finding.claim.source == "paper" else f" ({finding.claim.source})"
            measured = finding.reason or with_interval(finding.estimate, signed=True)
            rows.append([finding.claim.says + source, finding.expected, measured, finding.verdict])
    return rows


def attacker_label(attacker: str) -> str:
    """Name of an attacker in reports."""
    if attacker == WORST:
        return "the strongest family at each n"
    return "the published attacker (`fine_tune`)" if attacker == PAPER_ATTACKER else f"`{attacker}`"


def with_interval(estimate: Estimate, *, signed: bool = False) -> str:
    """Format a mean with its interval; a dash if the mean is NaN."""
    if math.isnan(estimate.mean):
        return "-"
    form = "+.3f" if signed else ".3f"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.mean:{form}}{interval}"


def _figures(suite: Suite, measured: Measured, attacker: str, folder: Path) -> list[Path]:
    paths = []
    for figure in suite.figures:
        if figure.needs not in measured.models:
            continue
        curves = [model_curve(measured, model, attacker) for model in figure.models if model in measured.models]
        path = folder / f"{figure.name}{'_worst' if attacker == WORST else ''}.png"
        title = f"{figure.title}: {'worst family' if attacker == WORST else 'published attacker'}"
        chance = 1 / next(iter(next(iter(measured.models.values())).values())).report.num_classes
        styles = model_styles(measured.models)
        paths.append(attack_curves_figure(curves, path, title=title, chance=chance, styles=styles))
    return paths


def model_curve(measured: Measured, model: str, attacker: str) -> Curve:
    """Curve of a model's harmful accuracy against n: means over training seeds, with intervals clipped to [0, 1]."""
    cells = [Estimate.of(list(measured.harmful(model, attacker, n).values())) for n in measured.num_examples]
    return Curve(
        label=model,
        num_examples=measured.num_examples,
        accuracy=tuple(cell.mean for cell in cells),
        low=tuple(max(cell.low, 0.0) for cell in cells),
        high=tuple(min(cell.high, 1.0) for cell in cells),
    )


def _report(
    suite: Suite, settings: SweepSettings, measured: Measured, findings: Sequence[Finding], pictures: Sequence[Path]
) -> str:
    attackers = list(dict.fromkeys(finding.attacker for finding in findings))
    lines = [f"# {suite.title}", "", _conditions(settings), ""]
    for attacker in attackers:
        lines += [f"## Under {attacker_label(attacker)}", "", markdown_table(models_table(measured, attacker)), ""]
        lines += [markdown_table(claims_table(findings, attacker), left=4), ""]
        for path in pictures:
            if path.stem.endswith("_worst") == (attacker == WORST):
                lines += [f"![{path.stem}]({path.name})", ""]
    lines += ["## By attack family", "", "Mean over n.", "", markdown_table(leaderboard(measured)), ""]
    for size in measured.num_examples:
        lines += [f"n = {size}:", "", markdown_table(_by_family(measured, size)), ""]
    lines += [f"Walking back, {line}." for line in _walking_back(measured)]
    failed = [
        f"{model}, seed {seed}"
        for model, m in measured.models.items()
        for seed, one in m.items()
        if not one.audit_passed
    ]
    lines += [f"Audit failed for: {'; '.join(failed) or 'none'}."]
    lines += [f"Missing: {name}: {reason}." for name, reason in measured.missing.items()]
    return "\n".join(lines) + "\n"


def _conditions(settings: SweepSettings) -> str:
    """Paragraph that describes the measurement conditions."""
    trial, attack = settings.trial, settings.trial.attack
    untried = ", ".join(name for name in FAMILIES if name not in attack.families)
    return (
        f"Sweep `{settings.name}`, {datetime.now(UTC):%Y-%m-%d}, sdm-ray {version('sdm-ray')}, torch "
        f"{version('torch')}. Data: {trial.data.source}; encoder: {trial.encoder.name}. {settings.search.num_seeds} "
        f"training seeds of every model, {trial.train.num_outer_steps} outer steps of every method that is trained. "
        f"Attack on each: families {', '.join(attack.families)}; {attack.num_search_trials} search points of "
        f"{attack.num_search_seeds} seed(s) chosen on validation, {attack.num_rerun_seeds} re-runs on fresh seeds, "
        f"scored once on test; {attack.num_steps_min} to {attack.num_steps_max} steps; subsets, orders and heads of "
        "their own for every training seed. Accuracies are balanced and means over training seeds; brackets are 95 % "
        "Student intervals over training seeds. All share one test set, whose own sampling error is not in them. Head "
        "start: accuracy after the attack minus that after the same attack on random initialisation (the regret in "
        f"accuracy). Attack families that were not tried: {untried}."
    )


def _walking_back(measured: Measured) -> list[str]:
    """Lines with each model's accuracy under families that use the public encoder; empty if none was tried."""
    lines = []
    for model, seeds in measured.models.items():
        values = [cell.accuracy for one in seeds.values() for cell in one.report.walking_back if cell.valid]
        if values:
            found = math.fsum(values) / len(values)
            lines.append(
                f"{LABELS.get(model, model)}: {found:.3f} with the public encoder at hand, which is not counted"
            )
    return lines


def _by_family(measured: Measured, size: int) -> list[list[str]]:
    rows = [["model", *measured.families]]
    for model in measured.models:
        cells = [Estimate.of(list(measured.harmful(model, name, size).values())).mean for name in measured.families]
        rows.append([LABELS.get(model, model), *map(_number, cells)])
    return rows


def _columns(name: str, estimate: Estimate) -> dict[str, float | None]:
    ends = {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {key: None if math.isnan(value) else value for key, value in ends.items()}


def _plain(finding: Finding) -> dict[str, Any]:
    claim = finding.claim
    return {
        "claim": claim.name,
        "says": claim.says,
        "source": claim.source,
        "expected": finding.expected,
        "attacker": finding.attacker,
        "verdict": finding.verdict,
        "num_seeds": finding.num_seeds,
        "reason": finding.reason,
        **_columns("value", finding.estimate),
    }


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
