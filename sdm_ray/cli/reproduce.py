"""`sdm-ray reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from sdm_ray.cli.progress import console, error_console
from sdm_ray.cli.sweep import again, run_checked, show_plan
from sdm_ray.core.errors import UsageError
from sdm_ray.reproduce import SUITES, Measured, read_measured, suite_settings, write_reproduction
from sdm_ray.reproduce.write import MARKDOWN, attacker_label, claims_table, models_table
from sdm_ray.sweep.state.ledger import FILE as LEDGER

FOLDER = "reproduction"
"""Folder within the sweep's folder."""
COLORS = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow"}


def run(name: str, *, small: bool, overrides: Sequence[str], resume: bool, dry_run: bool) -> None:
    """Run a suite, or the rest of it, and print its tables and verdicts.

    A verdict against a claim is a result, not a failure; a model without a result is a failure (exit code 1).
    """
    suite = SUITES[name]
    settings = suite_settings(suite, small=small, overrides=overrides)
    if dry_run:
        show_plan(settings)
        return
    outcome = run_checked(settings, resume=resume)
    measured = read_measured(outcome.folder)
    if outcome.interrupted or not measured.models:
        hint = again(settings, resume=resume, fork=False)
        error_console.print(f"what has finished is kept. Go on with: {hint}", markup=False, soft_wrap=True)
        raise typer.Exit(130 if outcome.interrupted else 1)
    for name in suite.beside:
        measured = _beside(measured, outcome.folder.parent / suite_settings(SUITES[name], small=small).name)
    folder = outcome.folder / FOLDER
    findings = write_reproduction(suite, settings, measured, folder)
    for attacker in dict.fromkeys(finding.attacker for finding in findings):
        label = attacker_label(attacker).replace("`", "")
        console.print(_table(models_table(measured, attacker), f"harmful accuracy after the attack: {label}"))
        console.print(_table(claims_table(findings, attacker), f"claims under {label}", left=3))
    console.print(f"{outcome.seconds:.0f} s, {len(outcome.results)} models, {len(outcome.failures)} failed")
    console.print(
        f"report  {escape(str(folder / MARKDOWN))} (figures, table.parquet and claims.json beside it)", soft_wrap=True
    )
    if outcome.tracking_hint:
        console.print(escape(outcome.tracking_hint), soft_wrap=True)
    if measured.missing:
        for model, reason in measured.missing.items():
            error_console.print(f"no result: {model}: {reason}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _beside(measured: Measured, folder: Path) -> Measured:
    """Add the models of another suite's sweep if it exists and is comparable; otherwise print why not."""
    if not (folder / LEDGER).exists():
        console.print(f"{escape(str(folder))} is not there, so its models are not beside these", soft_wrap=True)
        return measured
    try:
        return measured.with_models_of(read_measured(folder))
    except UsageError as error:
        console.print(f"the models of {escape(str(folder))} are not beside these: {error}", soft_wrap=True)
        return measured


def _table(rows: Sequence[Sequence[str]], title: str, *, left: int = 1) -> Table:
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(f"[{COLORS[cell]}]{cell}[/]" if cell in COLORS else escape(cell) for cell in row))
    return table
