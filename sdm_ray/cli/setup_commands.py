"""Commands that set things up: a schema for the editor, a look at the machine, completion for the shell."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sdm_ray.cli.options import AsJson, Document, Modules, Shell
from sdm_ray.config import SweepSettings, TrialSettings, json_schema, load_own_modules


def schema(
    document: Annotated[Document, typer.Argument(help="Which settings.")] = Document.sweep, modules: Modules = None
) -> None:
    """Print the JSON schema of the settings, for editors; with the names that modules register."""
    kind = SweepSettings if document is Document.sweep else TrialSettings
    names = {}
    if modules:
        load_own_modules(TrialSettings(), modules)
        from sdm_ray.attack.families import FAMILIES
        from sdm_ray.core.metric_names import OWN_METRICS

        names = {"families": list(FAMILIES), "metrics": list(OWN_METRICS)}
    typer.echo(json.dumps(json_schema(kind, **names), indent=1))


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also start and stop a local Ray.")] = False,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow server to try. [default: $MLFLOW_TRACKING_URI, else none]", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what works on this machine and what does not: versions, devices, Ray, MLflow, hub, disk."""
    from sdm_ray.cli.diagnosis import run

    run(deep=deep, tracking_uri=tracking_uri, as_json=as_json)


def completion(context: typer.Context, shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print a script that completes commands, options and settings: `eval "$(sdm-ray completion bash)"`."""
    from sdm_ray.cli.completion import completion_script

    typer.echo(completion_script(shell.value, context.find_root().command), nl=False)
