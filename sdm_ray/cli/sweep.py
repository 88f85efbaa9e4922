"""`sdm-ray sweep`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from sdm_ray.cli.best import BEST
from sdm_ray.cli.frontier import FIGURE, PAGE, print_table
from sdm_ray.cli.progress import IMPORTING, READING, console, error_console, say
from sdm_ray.config import SweepSettings, to_yaml
from sdm_ray.core.files import write_text
from sdm_ray.core.result import Status
from sdm_ray.figures.kept import FIGURE as KEPT
from sdm_ray.frontier.select import why_empty
from sdm_ray.sweep.records.best import load_best
from sdm_ray.sweep.records.folder import settle_pooling
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.location import check_location, own_storage
from sdm_ray.sweep.state.ledger import FILE as LEDGER
from sdm_ray.sweep.view.advice import what_to_change

if TYPE_CHECKING:
    from sdm_ray.sweep.outcome import SweepOutcome

MAX_LISTED = 20
"""Most trials listed at the end of a sweep for each reason why they are not on the frontier."""


def run(settings: SweepSettings, config: Path, *, resume: bool, fork: bool = False, retry: bool = False) -> None:
    """Run a sweep and print its frontier and next steps; exit code 130 if it was interrupted."""
    if fork:
        from sdm_ray.sweep.records.warm import forked

        settings, _ = settle_pooling(settings, resume=True)
        settings, message = forked(settings, _check(settings))
        console.print(escape(message), soft_wrap=True)
    outcome = run_checked(settings, resume=resume, retry=retry)
    if outcome.points:
        print_table(outcome.points)
    if outcome.interrupted:
        hint = again(settings, resume=resume, fork=fork)
        error_console.print(f"interrupted; what has finished is kept. Go on with: {hint}", markup=False, soft_wrap=True)
        raise typer.Exit(130)
    console.print(f"{outcome.seconds:.0f} s, {len(outcome.results)} trials, {len(outcome.failures)} failed")
    if not settings.search.num_trials:
        console.print(f"no search: the references alone; {escape(str(outcome.folder / PAGE))}", soft_wrap=True)
        raise typer.Exit(1 if outcome.failures else 0)
    if not outcome.front:
        why = f"the frontier is empty: {why_empty(outcome.points)}"
        error_console.print(why, markup=False, soft_wrap=True)
        for line in what_to_change(settings, outcome.results, outcome.points):
            error_console.print(f"change: {line}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    best = load_best(outcome.folder)
    write_text(outcome.folder / BEST, to_yaml(best))
    assert best.origin is not None
    _say_next(outcome.folder, best.origin.trial_id, outcome.tracking_hint, _study_hint(settings, outcome.folder))


def run_checked(settings: SweepSettings, *, resume: bool, retry: bool = False) -> SweepOutcome:
    """Run a sweep after its data and encoder were checked, and print failures."""
    from sdm_ray.sweep.cluster.choice import check_cluster, check_output_dir

    check_output_dir(settings)
    check_cluster(settings.resources)
    inputs = _check(settings, resume=resume)
    from sdm_ray.sweep.runner import run_sweep

    outcome = run_sweep(settings, resume=resume, retry_infrastructure=retry, inputs=inputs)
    for line in shortfalls(outcome):
        say(line)
    return outcome


def shortfalls(outcome: SweepOutcome) -> list[str]:
    """Why trials are not on the frontier, one line each: infeasible, stopped, failed; at most `MAX_LISTED` per kind."""
    lines = []
    for status in (Status.INFEASIBLE, Status.STOPPED, Status.FAILED):
        reasons = dict(outcome.infeasible) if status is Status.INFEASIBLE else {}
        said = set(reasons)  # whole points; their trials are not listed again
        for result in outcome.results:
            if result.status is status and point_of(result.trial_id) not in said:
                reasons[result.trial_id] = str(result.error)
        lines += [f"{status}: {name}: {reason}" for name, reason in list(reasons.items())[:MAX_LISTED]]
        if len(reasons) > MAX_LISTED:
            more = f"{len(reasons) - MAX_LISTED} more, with their reasons in {outcome.folder / LEDGER}"
            lines.append(f"{status}: {more}")
    lines += [
        f"infrastructure: {name}: {reason}; --resume --retry-infrastructure repeats it"
        for name, reason in list(outcome.infrastructure.items())[:MAX_LISTED]
    ]
    return lines


def point_of(trial_id: str) -> str:
    """Point of a trial: its id without training seed and stage."""
    return re.sub(r"(?:-s\d+)?(?:-final)?$", "", trial_id)


def _check(settings: SweepSettings, *, resume: bool = False, plans: bool = False) -> dict[str, str]:
    """Validate a sweep: first the settings alone, before torch is imported, then data and encoder.

    A plan (`--dry-run`) may need GPUs that this machine does not have. Returns the digests of data and encoder if this
    process can read them.
    """
    from sdm_ray.sweep.cluster.choice import check_gpus, choose_cluster

    check_location(settings)
    check_sweep(settings)
    say(IMPORTING)
    from sdm_ray.sweep.search.models import distillations, erasures, terms
    from sdm_ray.sweep.search.samplers import attack_samplers
    from sdm_ray.trial.context import TrialContext
    from sdm_ray.trial.workspace import check_inputs

    if not choose_cluster(settings.resources).is_private:  # the driver may not see the files that trials see
        return {}
    if not plans:
        check_gpus(settings.resources)
    say(READING)
    further = () if settings.final is None else (settings.final_attack(),)
    settled, _ = settle_pooling(settings, resume=resume)
    context = TrialContext(samplers=attack_samplers())
    return check_inputs(settled.trial, context, further, erasures(settled), distillations(settled), terms(settled))


def again(settings: SweepSettings, *, resume: bool, fork: bool) -> str:
    """The command that resumes this sweep."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--fork"]
    if fork:
        arguments += ["--set", f"name={settings.name}"]
        if settings.search.warm_start is not None:
            arguments += ["--set", f"search.warm_start={settings.search.warm_start}"]
    return shlex.join(["sdm-ray", *arguments, *([] if resume else ["--resume"])])


def show_plan(settings: SweepSettings) -> None:
    """Print what a sweep would do and cost; only a probe is run, and only caches are written."""
    _check(settings, plans=True)
    from sdm_ray.sweep.search.samplers import attack_samplers
    from sdm_ray.sweep.view.plan import describe, plan_sweep
    from sdm_ray.trial.context import TrialContext
    from sdm_ray.trial.cost import probe

    plan_sweep(settings, probe=None)  # validates before anything is timed
    say(f"{READING}; then a little of a trial is timed")
    measured = probe(settings.trial, TrialContext(samplers=attack_samplers()))
    for line in describe(plan_sweep(settings, probe=measured), settings):
        console.print(escape(line), soft_wrap=True)


def _study_hint(settings: SweepSettings, folder: Path) -> str:
    """The command that opens Optuna's dashboard on the sweep's storage."""
    storage = settings.storage or own_storage(folder)
    return shlex.join(["optuna-dashboard", storage.removeprefix("journal://"), "--host", "127.0.0.1"])


def _say_next(folder: Path, trial_id: str, tracking_hint: str, study_hint: str) -> None:
    model = folder / "trials" / trial_id / "model"
    rows = [
        ("page", str(folder / PAGE)),
        ("picture", str(folder / FIGURE)),
        ("attacks", str(folder / "attack_curves.png")),
        *([("kept", str(folder / KEPT))] if (folder / KEPT).is_file() else []),
        ("table", f"{folder / 'frontier.parquet'} and .json"),
        ("best config", str(folder / BEST)),
        ("best model", str(model)),
    ]
    for name, value in rows:
        console.print(f"{name:12}{escape(value)}", soft_wrap=True)
    console.print("\nnext:")
    commands = [
        ("compare the runs in MLflow", tracking_hint),
        ("look into Optuna's study (pip install optuna-dashboard)", study_hint),
        ("train again from the best config", shlex.join(["sdm-ray", "train", str(folder / BEST)])),
        ("attack the exported model", shlex.join(["sdm-ray", "attack", str(model)])),
    ]
    for name, command in commands:
        if command:
            lines = "\n  ".join(escape(command).splitlines())
            console.print(f"  # {name}\n  {lines}", soft_wrap=True)
