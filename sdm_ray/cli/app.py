"""`sdm-ray`: its commands, the options of all of them, and how it ends."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from sdm_ray.cli.failures import fault_of_the_machine, show_failure
from sdm_ray.cli.model_commands import attack, register, train
from sdm_ray.cli.setup_commands import completion, doctor, schema
from sdm_ray.cli.sweep_commands import best, frontier, init, reproduce, status, sweep
from sdm_ray.core.errors import RunError, UsageError

COMMANDS = (
    sweep, init, status, train, attack, frontier, best, register, reproduce, schema, doctor, completion,
)  # fmt: skip
"""In the order of `--help`."""
VERBOSE = {"-v": 1, "--verbose": 1, "-vv": 2}
"""What each way to ask for more adds."""

app = typer.Typer(
    name="sdm-ray",
    help="Search for self-destructing foundation models: good at the desired task, no head start on the harmful one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)


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
        show_failure("error", str(error), debug=debug)
        sys.exit(error.exit_code)
    except Exception as error:
        fault = fault_of_the_machine(error)
        unknown = f"{type(error).__name__}: {error}" + ("" if debug else " (--debug shows where)")
        show_failure("internal error" if fault is None else "error", fault or unknown, debug=debug)
        sys.exit(RunError.exit_code)
