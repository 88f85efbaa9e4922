"""`sdm-ray doctor`."""

from __future__ import annotations

import typer
from rich.table import Table

from sdm_ray.cli.console import console
from sdm_ray.config import RuntimeSettings
from sdm_ray.doctor import diagnose

STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}


def run(*, deep: bool, tracking_uri: str | None) -> None:
    """Print every check; exit code 1 when one failed."""
    checks = diagnose(RuntimeSettings().cache_folder(), deep=deep, tracking_uri=tracking_uri)
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "status", "detail"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        table.add_row(check.name, f"[{STYLE[check.status]}]{check.status}[/]", check.detail)
    console.print(table)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
