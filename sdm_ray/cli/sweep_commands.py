"""Commands about many trials: search, look at a sweep, pick from it, reproduce a published comparison.

Each imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdm_ray.cli.options import AsJson, Modules, Overrides, Rule, Suite, SweepOrRun, TrackingUri
from sdm_ray.cli.own_modules import with_modules
from sdm_ray.config import SweepSettings, load_settings
from sdm_ray.core.errors import UsageError


def sweep(
    config: Annotated[
        Path, typer.Argument(metavar="SWEEP.YAML", help="Sweep file; `sweeps/quickstart.yaml` to begin with.")
    ],
    overrides: Overrides = None,
    modules: Modules = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was interrupted.")] = False,
    fork: Annotated[
        bool,
        typer.Option(
            "--fork", help="The file has changed: start another sweep, NAME-2, which knows what the first found."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do and, by timing a little of a trial, cost.")
    ] = False,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry-infrastructure",
            help="With --resume: repeat trials that were left out because they were killed from outside too often.",
        ),
    ] = False,
) -> None:
    """Search: train, release and attack many models, and track the frontier."""
    from sdm_ray.cli.sweep import run, show_plan

    if resume and fork:
        raise UsageError("--resume goes on with a sweep and --fork starts another: give one of them")
    if retry and not resume:
        raise UsageError("--retry-infrastructure repeats trials of a sweep that goes on: give it with --resume")
    if dry_run and (resume or fork):
        raise UsageError("--dry-run plans a whole sweep from its file: give it without --resume and --fork")
    settings = with_modules(load_settings(SweepSettings, config, overrides or ()), modules, overrides)
    if dry_run:
        show_plan(settings)
    else:
        run(settings, config, resume=resume, fork=fork, retry=retry)


def init(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A .csv, .tsv, .jsonl or .parquet file, a folder, or a hub id.")
    ],
    text: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the texts.")],
    desired: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the label that the model shall learn.")],
    harmful: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the label that it shall be hard to teach.")],
    encoder: Annotated[
        str | None,
        typer.Option(help="A Hugging Face folder or hub id. [default: BERT-Tiny from the hub]", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write. [default: NAME.yaml, by the data's name]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
) -> None:
    """Look at your data and write a sweep file that runs: splits, sizes, lengths, and about how long it takes."""
    from sdm_ray.cli.init import run

    run(data, text, desired, harmful, encoder=encoder, out=out, force=force)


def status(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="[SWEEP]",
            help="A sweep's folder, or its name below `runs/`. [default: all sweeps there; a folder of sweeps lists "
            "those in it]",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say where a sweep stands, while it runs or after: trials, best points, failures, and who runs it."""
    from sdm_ray.cli.status import show_status

    show_status(sweep, as_json=as_json)


def frontier(
    sweep: SweepOrRun,
    others: Annotated[
        list[str] | None, typer.Argument(metavar="[SWEEP2 ...]", help="Sweeps to compare with it by hypervolume.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare sweeps though their attack, data or sizes differ.")
    ] = False,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Print a sweep's Pareto table, draw its picture and page again, and compare it with other sweeps."""
    from sdm_ray.cli.frontier import show_frontier

    show_frontier(sweep, others or (), tracking_uri, as_json=as_json, force=force)


def best(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP", help="A sweep's folder, its name below `runs/`, or `mlflow:RUN_ID` of a trial."
        ),
    ],
    rule: Annotated[
        Rule | None,
        typer.Option(
            help="Lowest harmful accuracy with enough desired accuracy, knee of the front, weighted sum, or one trial. "
            "[default: the rule of the option that is given, else constrained]",
            show_default=False,
        ),
    ] = None,
    min_desired: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least desired accuracy (rule constrained).")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Weight of the harmful accuracy (rule weighted). [default: 0.5]"),
    ] = None,
    trial: Annotated[str | None, typer.Option(help="Trial id (rule trial).")] = None,
    out: Annotated[Path, typer.Option(help="Config to write.")] = Path("best.yaml"),
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Pick a point of the frontier and write its config, which `sdm-ray train` takes as it is."""
    from sdm_ray.cli.best import write_best

    named = None if rule is None else rule.value
    bounds = {"min_desired": min_desired, "weight": weight}
    write_best(sweep, named, **bounds, trial_id=trial, out=out, tracking_uri=tracking_uri, as_json=as_json)


def reproduce(
    suite: Annotated[
        Suite,
        typer.Argument(metavar="SUITE", help="`paper-bios`, `paper-regression`, `later-defences` or `beat-paper`."),
    ],
    small: Annotated[
        bool,
        typer.Option("--small", help="The scaled-down twin for two CPU cores, in place of the published settings."),
    ] = False,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a suite that was interrupted.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do and, by timing a little of a trial, cost.")
    ] = False,
) -> None:
    """Run a published comparison under fixed attackers: figures, tables, and a verdict for each claim."""
    from sdm_ray.cli.reproduce import run

    run(suite.value, small=small, overrides=overrides or (), resume=resume, dry_run=dry_run)
