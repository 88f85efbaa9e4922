"""`sdm-ray best`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

from rich.markup import escape

from sdm_ray.cli.progress import console, print_json
from sdm_ray.cli.verdicts import failed_checks, say_point
from sdm_ray.config import to_yaml
from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import write_text
from sdm_ray.core.verdict import says
from sdm_ray.frontier.kept import UNMEASURED, is_unmeasured
from sdm_ray.frontier.select import Rule
from sdm_ray.sweep.records.best import load_best

BEST = "best.yaml"


def write_best(
    sweep: str,
    rule: str | None,
    *,
    min_desired: float | None,
    weight: float | None,
    trial_id: str | None,
    out: Path,
    tracking_uri: str | None = None,
    as_json: bool = False,
) -> None:
    """Select a point and write its config."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name the file to write, for example {out / BEST}")
    settings = load_best(
        sweep,
        rule=cast("Rule | None", rule),  # the command line has checked it
        min_desired=min_desired,
        desired_weight=None if weight is None else 1 - weight,
        trial_id=trial_id,
        tracking_uri=tracking_uri,
    )
    write_text(out, to_yaml(settings))
    assert settings.origin is not None
    failed = failed_checks(sweep, settings.origin.trial_id, tracking_uri)
    if as_json:
        origin = settings.origin.model_dump(mode="json")
        said = says(settings.origin.metrics, failed)
        print_json(
            {
                "config": out,
                "verdict": said,
                "failed_checks": failed,
                **origin,
                "settings": settings.model_dump(mode="json", exclude={"origin"}),
            }
        )
        return
    if is_unmeasured(settings.origin.metrics):
        console.print(UNMEASURED, soft_wrap=True)
    say_point(settings.origin.metrics, failed)
    console.print(f"{settings.origin.trial_id} ({settings.origin.rule}) -> {escape(str(out))}", soft_wrap=True)
    console.print(f"next    sdm-ray train {escape(shlex.quote(str(out)))}", soft_wrap=True)
