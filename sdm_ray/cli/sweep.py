"""`sdm-ray sweep`, `frontier` and `best`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import typer
from rich.markup import escape

from sdm_ray.cli.progress import IMPORTING, READING, console, error_console, print_json, say
from sdm_ray.cli.verdicts import failed_checks, say_point
from sdm_ray.config import SweepSettings, to_yaml
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import write_text
from sdm_ray.core.result import Status
from sdm_ray.core.verdict import says
from sdm_ray.figures.frontier import frontier_figure
from sdm_ray.figures.kept import FIGURE as KEPT
from sdm_ray.figures.kept import kept_figure
from sdm_ray.figures.page import write_page
from sdm_ray.figures.tables import pareto_table
from sdm_ray.frontier.kept import UNMEASURED, is_unmeasured, kept_note
from sdm_ray.frontier.points import Point, compare, hypervolume
from sdm_ray.frontier.select import Rule, select, why_empty
from sdm_ray.frontier.tables import frontier_document, read_extras, write_tables
from sdm_ray.sweep.records.best import load_best
from sdm_ray.sweep.records.comparable import data_digest, unlike
from sdm_ray.sweep.records.folder import begun_settings, find_sweep, settle_pooling
from sdm_ray.sweep.records.points import sweep_points
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.location import check_location, own_storage
from sdm_ray.sweep.state.ledger import FILE as LEDGER
from sdm_ray.sweep.view.advice import what_to_change
from sdm_ray.tracking.address import PREFIX, is_reference

if TYPE_CHECKING:
    from sdm_ray.sweep.runner import SweepOutcome

FIGURE, PAGE = "frontier.png", "frontier.html"
BEST = "best.yaml"
WIDE = 110
"""Characters of a terminal from which on the table has columns of what training cost."""
MAX_LISTED = 20
"""Trials that a sweep's end lists for each way in which they are not on the frontier."""


def run(settings: SweepSettings, config: Path, *, resume: bool, fork: bool = False, retry: bool = False) -> None:
    """Run a sweep and print its frontier and what to do next; exit code 130 when it was interrupted."""
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


def print_table(points: Sequence[Point]) -> None:
    """Print the Pareto table, and what it cannot know."""
    console.print(pareto_table(points, costs=console.width >= WIDE))
    note = kept_note(points)
    if note is not None:
        console.print(note, soft_wrap=True)


def run_checked(settings: SweepSettings, *, resume: bool, retry: bool = False) -> SweepOutcome:
    """Run a sweep whose data and encoder have been tried, and say what failed in it."""
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
    """Why trials are not on the frontier, a line each: infeasible, stopped, failed; at most `MAX_LISTED` of a kind."""
    lines = []
    for status in (Status.INFEASIBLE, Status.STOPPED, Status.FAILED):
        reasons = dict(outcome.infeasible) if status is Status.INFEASIBLE else {}
        said = set(reasons)  # whole points, whose trials are not said again
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
    """The point that a trial belongs to: its id without its training seed and stage."""
    return re.sub(r"(?:-s\d+)?(?:-final)?$", "", trial_id)


def _check(settings: SweepSettings, *, resume: bool = False, plans: bool = False) -> dict[str, str]:
    """Refuse what cannot work: what the settings alone tell before torch is imported, then data and encoder.

    What is only planned may need GPUs that this machine has not. Returns the digests of both, where this process can
    see them.
    """
    from sdm_ray.sweep.cluster.choice import check_gpus, choose_cluster

    check_location(settings)
    check_sweep(settings)
    say(IMPORTING)
    from sdm_ray.sweep.search.models import distillations, erasures, terms
    from sdm_ray.sweep.search.samplers import attack_samplers
    from sdm_ray.trial.context import TrialContext
    from sdm_ray.trial.workspace import check_inputs

    if not choose_cluster(settings.resources).is_private:  # the driver may not see what the trials see
        return {}
    if not plans:
        check_gpus(settings.resources)
    say(READING)
    further = () if settings.final is None else (settings.final_attack(),)
    settled, _ = settle_pooling(settings, resume=resume)
    context = TrialContext(samplers=attack_samplers())
    return check_inputs(settled.trial, context, further, erasures(settled), distillations(settled), terms(settled))


def again(settings: SweepSettings, *, resume: bool, fork: bool) -> str:
    """The command that goes on with this sweep."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--fork"]
    if fork:
        arguments += ["--set", f"name={settings.name}"]
        if settings.search.warm_start is not None:
            arguments += ["--set", f"search.warm_start={settings.search.warm_start}"]
    return shlex.join(["sdm-ray", *arguments, *([] if resume else ["--resume"])])


def show_plan(settings: SweepSettings) -> None:
    """Say what a sweep would do and cost; nothing is started but a probe, and nothing is written but its caches."""
    _check(settings, plans=True)
    from sdm_ray.sweep.search.samplers import attack_samplers
    from sdm_ray.sweep.view.plan import describe, plan_sweep
    from sdm_ray.trial.context import TrialContext
    from sdm_ray.trial.cost import probe

    plan_sweep(settings, probe=None)  # says what is wrong before anything is timed
    say(f"{READING}; then a little of a trial is timed")
    measured = probe(settings.trial, TrialContext(samplers=attack_samplers()))
    for line in describe(plan_sweep(settings, probe=measured), settings):
        console.print(escape(line), soft_wrap=True)


class _Sweep(NamedTuple):
    name: str
    folder: Path
    """Where its pictures go."""
    points: list[Point]
    settings: SweepSettings
    data: str | None = None
    """Digest of its data; None where it is not known."""

    @property
    def measured(self) -> tuple[str, SweepSettings, str | None]:
        """What comparisons depend on."""
        return self.name, self.settings, self.data


def _read(sweep: str, tracking_uri: str | None) -> _Sweep:
    """A sweep from its folder, or (`mlflow:RUN_ID`) from its runs."""
    if not is_reference(sweep):
        folder = find_sweep(sweep)
        settings = begun_settings(folder)
        return _Sweep(folder.name, folder, sweep_points(folder), settings, data_digest(folder))
    from sdm_ray.sweep.records.tracked import tracked_sweep

    name, settings, points = tracked_sweep(sweep, uri=tracking_uri)
    return _Sweep(name, Path("runs") / f"{name}-{sweep.removeprefix(PREFIX)[:8]}", points, settings)


def show_frontier(
    sweep: str,
    others: Sequence[str] = (),
    tracking_uri: str | None = None,
    *,
    as_json: bool = False,
    force: bool = False,
) -> None:
    """Print the Pareto table of a sweep and draw its picture again; an empty frontier is an error that says why.

    Each of the others is compared with it by hypervolume; unless `force`, one that was measured otherwise is refused.
    """
    mine = _read(sweep, tracking_uri)
    name, folder, points = mine.name, mine.folder, mine.points
    compared = [_read(other, tracking_uri) for other in others]
    differences = [unlike(mine.measured, theirs.measured) for theirs in compared]
    for theirs, found in zip(compared, differences, strict=True):
        if found and not force:
            raise UsageError(
                f"{name} and {theirs.name} were not measured alike, so neither hypervolume is better: "
                f"{'; '.join(found)}; run both alike, or add --force"
            )
    if as_json:
        pairs = zip(compared, differences, strict=True)
        comparisons = [_comparison(points, theirs, unalike)._asdict() for theirs, unalike in pairs]
        files = _draw(mine, is_run=is_reference(sweep))
        document = frontier_document(points, read_extras(folder))
        print_json({"sweep": name, **document, "comparisons": comparisons, "files": files})
        select(points)
        return
    print_table(points)
    files = _draw(mine, is_run=is_reference(sweep))
    select(points)
    for label, file in files.items():
        if file is not None:
            console.print(f"{label:8}{escape(str(file))}", soft_wrap=True)
    if compared:
        console.print(f"{escape(name)}: hypervolume {hypervolume(points):.4f}, {_num_trials(points)} trials")
    for theirs, unalike in zip(compared, differences, strict=True):
        compares = _comparison(points, theirs, unalike)
        console.print(
            f"{escape(theirs.name)}: hypervolume {compares.hypervolume:.4f}, {compares.num_trials} trials: "
            f"{compares.difference:+.4f} \\[{compares.low:+.4f}, {compares.high:+.4f}] ({compares.verdict}; "
            "95 % interval, bootstrap over trials)",
            soft_wrap=True,
        )
        for difference in unalike:
            console.print(f"  not alike: {escape(difference)}", soft_wrap=True)


def _draw(sweep: _Sweep, *, is_run: bool) -> dict[str, Path | None]:
    """Draw the pictures and the page of a sweep, whose table is written too where it was read from its runs.

    None stands for what is not drawn: `kept`, where nothing was measured for it, and all in a folder that cannot be
    written, such as a colleague's, which is said.
    """
    folder, points = sweep.folder, sweep.points
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_run:
            write_tables(points, folder)
        frontier_figure(points, folder / FIGURE)
        shares = kept_figure(points, folder / KEPT)
        write_page(points, folder / PAGE, title=sweep.name, extras=read_extras(folder))
    except (RunError, OSError) as error:
        said = f"no picture is drawn: {error}"
        error_console.print(said, markup=False, soft_wrap=True)
        return {"picture": None, "kept": None, "page": None}
    return {"picture": folder / FIGURE, "kept": shares, "page": folder / PAGE}


class _Comparison(NamedTuple):
    sweep: str
    hypervolume: float
    num_trials: int
    difference: float
    """Of the hypervolumes, the first sweep's minus this one's; with its 95 % interval."""
    low: float
    high: float
    verdict: str
    """On the first sweep."""
    not_alike: list[str]
    """What was measured otherwise, where the comparison was forced."""


def _comparison(points: Sequence[Point], other: _Sweep, not_alike: list[str]) -> _Comparison:
    theirs = other.points
    difference, low, high = compare(points, theirs)
    verdict = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
    return _Comparison(other.name, hypervolume(theirs), _num_trials(theirs), difference, low, high, verdict, not_alike)


def _num_trials(points: Sequence[Point]) -> int:
    return sum(not point.is_reference for point in points)


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
    """Pick a point and write its config."""
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
