"""The commands of `sdm-ray`. Each imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.markup import escape

from sdm_ray.cli.progress import error_console
from sdm_ray.config import (
    SweepSettings,
    TrialSettings,
    check_modules,
    json_schema,
    load_own_modules,
    load_settings,
    override,
)
from sdm_ray.core.errors import RunError, UsageError

T = TypeVar("T", TrialSettings, SweepSettings)

app = typer.Typer(
    name="sdm-ray",
    help="Search for self-destructing foundation models: good at the desired task, no head start on the harmful one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a setting by dotted path; the value is YAML. Repeatable."
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        metavar="NAME",
        help="Load a module of your own as it is, beside those of the file: it may register terms, attack families, "
        "metrics, sources of data. Repeatable.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow that holds the run. [default: $MLFLOW_TRACKING_URI, else the sweeps in runs/]", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

SweepOrRun = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP", help="A sweep's folder, its name below `runs/`, or `mlflow:RUN_ID` of any of its runs."
    ),
]


class Method(StrEnum):
    """Methods that one trial can train."""

    pretrained = "pretrained"
    random = "random"
    tuned = "tuned"
    erase = "erase"
    distil = "distil"
    distilled_scratch = "distilled_scratch"
    ac = "ac"
    mlac = "mlac"


class Rule(StrEnum):
    """Rules that pick a point of the frontier."""

    constrained = "constrained"
    knee = "knee"
    weighted = "weighted"
    trial = "trial"


class AttackPreset(StrEnum):
    """Budgets of an attack."""

    quick = "quick"
    standard = "standard"
    paper = "paper"
    worst_case = "worst-case"


class Suite(StrEnum):
    """Comparisons that `reproduce` runs."""

    paper_bios = "paper-bios"
    paper_regression = "paper-regression"
    later_defences = "later-defences"
    beat_paper = "beat-paper"


class Shell(StrEnum):
    """Shells that completion is there for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


class Document(StrEnum):
    """Settings documents that have a schema."""

    trial = "trial"
    sweep = "sweep"


def _show_version(asked: bool) -> None:
    if asked:
        import sdm_ray

        typer.echo(f"sdm-ray {sdm_ray.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug logs (anywhere on the line).")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Say more of what is done; -vv of what libraries do (anywhere too).",
        ),
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """`main` handles `--debug` and `-v`, which it sees anywhere on the line."""


def _with_modules(settings: T, named: list[str] | None, overrides: list[str] | None) -> T:
    """Load modules of the user's own; those that only the file asks for are shown, and must lie at hand."""
    for place in check_modules(settings, named or (), overrides or ()):
        error_console.print(f"the settings load the module {escape(str(place))}", soft_wrap=True)
    return load_own_modules(settings, named or ())


@app.command()
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
) -> None:
    """Search: train, release and attack many models, and track the frontier."""
    from sdm_ray.cli.sweep import run, show_plan

    if resume and fork:
        raise UsageError("--resume goes on with a sweep and --fork starts another: give one of them")
    if dry_run and (resume or fork):
        raise UsageError("--dry-run plans a whole sweep from its file: give it without --resume and --fork")
    settings = _with_modules(load_settings(SweepSettings, config, overrides or ()), modules, overrides)
    if dry_run:
        show_plan(settings)
    else:
        run(settings, config, resume=resume, fork=fork)


@app.command()
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


@app.command()
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


@app.command()
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
    from sdm_ray.cli.train import run

    settings = _with_modules(load_settings(TrialSettings, config, overrides or ()), modules, overrides)
    if method is not None:
        train_settings = settings.train.for_method(method.value)
        settings = override(settings, {"train": train_settings.model_dump(mode="json")})
    run(settings, config, out, tracking_uri)


@app.command()
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
    from sdm_ray.cli.attack import run

    named = None if preset is None else preset.value
    given = (tuple(overrides or ()), tuple(modules or ()))
    run(model, config, named, given, out, ray_address, tracking_uri, add_winners)


@app.command()
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
    from sdm_ray.cli.sweep import show_frontier

    show_frontier(sweep, others or (), tracking_uri, as_json=as_json, force=force)


@app.command()
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
    from sdm_ray.cli.sweep import write_best

    named = None if rule is None else rule.value
    bounds = {"min_desired": min_desired, "weight": weight}
    write_best(sweep, named, **bounds, trial_id=trial, out=out, tracking_uri=tracking_uri, as_json=as_json)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print a script that completes commands, options and settings: `eval "$(sdm-ray completion bash)"`."""
    from typer.main import get_command

    from sdm_ray.cli.completion import completion_script

    typer.echo(completion_script(shell.value, get_command(app)), nl=False)


VERBOSE = {"-v": 1, "--verbose": 1, "-vv": 2}
"""What each way to ask for more adds."""


def main(argv: list[str] | None = None) -> None:
    """Run a command; errors become one sentence and an exit code (2 usage, 1 failure, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("SDM_RAY_DEBUG"))
    verbosity = sum(VERBOSE.get(argument, 0) for argument in arguments)
    arguments = [argument for argument in arguments if argument != "--debug" and argument not in VERBOSE]
    everything = debug or verbosity > 1
    logging.basicConfig(
        level=logging.DEBUG if everything else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if verbosity and not everything:
        logging.getLogger("sdm_ray").setLevel(logging.INFO)
    try:
        app(arguments)
    except (UsageError, RunError) as error:
        _fail("error", str(error), debug=debug)
        sys.exit(error.exit_code)
    except Exception as error:
        fault = _fault_of_the_machine(error)
        unknown = f"{type(error).__name__}: {error}" + ("" if debug else " (--debug shows where)")
        _fail("internal error" if fault is None else "error", fault or unknown, debug=debug)
        sys.exit(RunError.exit_code)


def _fault_of_the_machine(error: Exception) -> str | None:
    """A sentence for what the file system refuses, wherever that was not foreseen; None for everything else."""
    if not isinstance(error, OSError) or error.errno not in FILE_FAULTS:
        return None
    name = str(error.filename or "")
    file = f"cannot use {name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + '...'}: " if name else ""
    return f"{file}{os.strerror(error.errno)}; {FILE_FAULTS[error.errno]}"


MAX_SHOWN = 200
"""Characters of a file's name."""
FILE_FAULTS = {
    errno.ENAMETOOLONG: "shorten the name",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space, and give the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "correct its permissions, or name another"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "correct the path"),
    errno.EIO: "the disk or its file system fails",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What to do about each."""


def _fail(kind: str, message: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    error_console.print(f"[bold red]{kind}:[/] {escape(message)}", soft_wrap=True)
