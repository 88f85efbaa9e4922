"""Commands about one model: train it, attack it, register it.

Each imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdm_ray.cli.options import AttackPreset, Method, Modules, Overrides, TrackingUri
from sdm_ray.cli.own_modules import with_modules
from sdm_ray.config import TrialSettings, load_settings, override


def train(
    config: Annotated[Path, typer.Argument(metavar="TRIAL.YAML", help="Trial file, or what `sdm-ray best` wrote.")],
    overrides: Overrides = None,
    modules: Modules = None,
    method: Annotated[Method | None, typer.Option(help="Train a reference with the same budget instead.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. [default: runs/NAME-HASH]")] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow to log to; `none` logs nowhere. [default: $MLFLOW_TRACKING_URI, else where the config's sweep "
            "was tracked, else none]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train one model, release it and attack it; the same command resumes."""
    from sdm_ray.cli.foreign import own_settings
    from sdm_ray.cli.train import run

    settings = own_settings(load_settings(TrialSettings, config, overrides or ()), overrides or ())
    settings = with_modules(settings, modules, overrides)
    if method is not None:
        train_settings = settings.train.for_method(method.value)
        settings = override(settings, {"train": train_settings.model_dump(mode="json")})
    run(settings, config, out, tracking_uri)


def attack(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An exported model, a Hugging Face folder, a hub id, or `mlflow:RUN_ID` of a trial, whose run then "
            "gets the result too.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="Trial file whose data and attack are used. [default: the data that the export names]"),
    ] = None,
    preset: Annotated[
        AttackPreset | None,
        typer.Option(
            help="Budget and families in place of the trial file's. [default: the file's, else the default attack]"
        ),
    ] = None,
    overrides: Overrides = None,
    modules: Modules = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Spread fine-tunes over a Ray cluster: `local`, `auto` or an address. [default: none]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. [default: runs/attack-HASH]")] = None,
    add_winners: Annotated[
        Path | None,
        typer.Option(help="Add what won to this portfolio, for `attack.portfolio` of the next attack. [default: none]"),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Attack a released model and compare it with random initialisation and the public encoder."""
    from sdm_ray.cli.attack import Request, run

    request = Request(
        config=config,
        preset=None if preset is None else preset.value,
        overrides=tuple(overrides or ()),
        modules=tuple(modules or ()),
        ray_address=ray_address,
        out=out,
        winners=add_winners,
    )
    run(model, request, tracking_uri=tracking_uri)


def register(
    source: Annotated[
        str, typer.Argument(metavar="RUN|SWEEP", help="`mlflow:RUN_ID` of a trial, or a sweep, whose best is taken.")
    ],
    name: Annotated[str, typer.Option(help="Registered model; created if needed.")],
    min_desired: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least desired accuracy of a sweep's best.")
    ] = None,
    trial: Annotated[str | None, typer.Option(help="Trial id of a sweep, in place of its best.")] = None,
    alias: Annotated[str, typer.Option(help="Alias that the version gets.")] = "champion",
    promote: Annotated[bool, typer.Option(help="Give it the alias.")] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it though it is infeasible, audited out or worse.")
    ] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Make a version of a registered model in MLflow, promoted unless the present champion is better."""
    from sdm_ray.cli.register import run

    run(source, name, min_desired=min_desired, trial=trial, alias=alias, promote=promote, force=force, uri=tracking_uri)
