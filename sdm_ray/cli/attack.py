"""`sdm-ray attack`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.markup import escape
from rich.text import Text

from sdm_ray.cli.findings import finding_lines
from sdm_ray.cli.foreign import own_settings
from sdm_ray.cli.own_modules import with_modules
from sdm_ray.cli.progress import IMPORTING, READING, console, error_console, follow, say
from sdm_ray.cli.tables import attack_table, family_table
from sdm_ray.config import (
    EncoderSettings,
    TrialSettings,
    content_hash,
    digest,
    load_settings,
    parse_settings,
    read_document,
)
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.types import Task
from sdm_ray.tracking.address import is_reference

if TYPE_CHECKING:
    from sdm_ray.attack.findings.strength import Strength
    from sdm_ray.attack.report import AttackReport
    from sdm_ray.models.export import Exported
    from sdm_ray.tracking.runs import TrackedRun
    from sdm_ray.trial.assess import Assessment
    from sdm_ray.trial.release import Release
    from sdm_ray.trial.workspace import Workspace

FILES = ("attack.parquet", "attack.json", "audit.json", "metrics.json", "summary.parquet")
FIGURES = ("attack.png", "best_so_far.png", "recovery.png", "strength.png")
BELIEVED = ("data", "encoder", "train")
"""Settings that are read from a released folder."""


class Request(NamedTuple):
    """Options of the attack from the command line."""

    config: Path | None = None
    """File with a trial's settings."""
    preset: str | None = None
    """Preset that replaces the attack in the settings."""
    overrides: tuple[str, ...] = ()
    """Overrides of settings, each `name=value`."""
    modules: tuple[str, ...] = ()
    """Modules to import."""
    ray_address: str | None = None
    """Address of the cluster that runs fine-tunes; None runs them in this process."""
    out: Path | None = None
    """Folder for the results."""
    winners: Path | None = None
    """Portfolio file to which the winners are added."""


def run(model: str, request: Request, *, tracking_uri: str | None = None) -> None:
    """Attack `model`, its random re-initialisation and its public encoder with the same budget; print the results.

    The model of a tracked run (`mlflow:RUN_ID`) is read from its folder or from the run's artifacts, and the results
    are added to the run.
    """
    from sdm_ray.sweep.cluster.choice import check_out
    from sdm_ray.tracking.artifacts import model_folder
    from sdm_ray.tracking.runs import find_run

    check_out(request.out)
    say(IMPORTING)
    if not is_reference(model):
        _attack(model, request)
        return
    tracked = find_run(model, uri=tracking_uri)
    with model_folder(tracked) as folder:
        _attack(str(folder), request, tracked)


def _attack(model: str, request: Request, tracked: TrackedRun | None = None) -> None:
    from sdm_ray.attack.findings.strength import attack_strength
    from sdm_ray.attack.portfolio import add_winners, read_portfolio
    from sdm_ray.models.export import META, load_exported
    from sdm_ray.models.trunk import params_digest
    from sdm_ray.trial.assess import assess

    winners, overrides = request.winners, request.overrides
    if winners is not None and winners.exists():
        read_portfolio(winners)  # says what is wrong with it before anything runs
    exported = load_exported(model) if (Path(model) / META).is_file() else None
    if tracked is not None:
        from sdm_ray.tracking.artifacts import check_weights

        check_weights(tracked, None if exported is None else exported.params, model)
    released = exported.meta.settings if exported is not None and exported.meta is not None else None
    settings = own_settings(attack_settings(request.config, request.preset, overrides, released), overrides)
    settings = with_modules(settings, request.modules, overrides)
    if released is not None and request.config is None:
        console.print(
            f"the folder says: {escape(_says(released))}; how it is attacked is not for it to say", soft_wrap=True
        )
    say(READING)
    work, release = _opened(model, settings, exported, released)
    try:
        with _runner(request.ray_address, work.device.type, settings.modules) as runner:
            generator = assess(
                work, release, settings.attack, seed=settings.seed, runner=runner, scratch=settings.own_scratch()
            )
            found = follow(generator, "attack")
    except KeyboardInterrupt:
        error_console.print("stopped; nothing was written")
        raise typer.Exit(130) from None
    folder = request.out or Path("runs") / f"attack-{content_hash(settings)}"
    strength = attack_strength(found.report)
    found.metrics.update(strength.metrics())
    _write(found, strength, folder)
    findings = _print(found, strength, settings, folder)
    if winners is not None:
        count = add_winners(winners, found.report, params_digest(release.params))
        console.print(f"{count} winners were added to {escape(str(winners))}", soft_wrap=True)
    if tracked is not None:
        label = f"{request.preset or 'trial'}-{digest(settings.attack.identity())}"
        _add_to_run(tracked, label, found, folder, verdict=Text.from_markup(findings[0]).plain)


def _opened(
    model: str, settings: TrialSettings, exported: Exported | None, released: TrialSettings | None
) -> tuple[Workspace, Release]:
    """Open the data and the released model; an exported folder names its encoder, data and training."""
    if settings.data.source == "regression":
        raise UsageError(
            f"data.source 'regression' is vectors with numbers to predict, and {model} is an encoder of texts with "
            "classes to tell apart; give the texts that it was trained for (--config FILE, or --set data.source=...)"
        )
    import torch

    from sdm_ray.models.pooling import choose_pooling
    from sdm_ray.sweep.search.samplers import attack_samplers
    from sdm_ray.trial.context import TrialContext
    from sdm_ray.trial.release import Release
    from sdm_ray.trial.workspace import open_workspace, trunk_params

    public = None if released is None else released.encoder
    encoder, note = choose_pooling(_released_encoder(model, settings, public))
    if note is not None:
        console.print(escape(note), soft_wrap=True)
    torch.set_num_threads(settings.runtime.num_threads)
    context = TrialContext(samplers=attack_samplers())
    work = open_workspace(settings.model_copy(update={"encoder": encoder}), context)
    _check_head(model, exported, work)
    trunk = work.trunk(encoder, "pretrained", settings.seed)
    defended = released is not None and released.train.method == "mlac"
    release = Release(
        trunk=trunk,
        params=trunk_params(trunk),
        encoder=public,
        architecture=encoder,
        desired_head=None if exported is None or exported.head is None else exported.head.to(work.device),
        trained_against=released.train.adversary.supports() if released is not None and defended else (),
    )
    return work, release


def _check_head(model: str, exported: Exported | None, work: Workspace) -> None:
    """Refuse data whose desired classes differ from those of the released head."""
    if exported is None or exported.head is None:
        return
    found, wanted = work.data.num_classes(Task.DESIRED), exported.head.shape[0]
    if found != wanted:
        raise UsageError(
            f"data.desired_column has {found} classes, and the head of {model} tells {wanted} apart; give the data "
            "that it was trained for"
        )


def _says(released: TrialSettings) -> str:
    """Short description of a released folder's own statements."""
    return f"data {released.data.source}, made from {released.encoder.name} by {released.train.method}"


def _reports(found: Assessment) -> dict[str, AttackReport]:
    """Reports of the attack on the model and on its references, by name."""
    reports = {"released": found.report, "random": found.floor}
    further = {"scratch": found.scratch, "pretrained": found.undefended}
    return reports | {name: report for name, report in further.items() if report is not None}


def _write(found: Assessment, strength: Strength, folder: Path) -> None:
    """Write `FILES` and draw `FIGURES`."""
    from sdm_ray.attack.summary import write_summary
    from sdm_ray.core.files import null_for_nan, write_json
    from sdm_ray.figures.attack import write_figures
    from sdm_ray.figures.strength import FIGURE as STRENGTH
    from sdm_ray.figures.strength import strength_figure

    found.write(folder)
    write_json(folder / "metrics.json", null_for_nan(found.metrics))
    write_summary(_reports(found), folder / "summary.parquet")
    write_figures(_reports(found), folder)
    strength_figure(strength, folder / STRENGTH, num_classes=found.report.num_classes)


def _print(found: Assessment, strength: Strength, settings: TrialSettings, folder: Path) -> list[str]:
    """Print tables, findings and where the files lie; gives the findings, the verdict first."""
    console.print(attack_table(_reports(found)))
    if len(settings.attack.families) > 1:
        console.print(family_table(found.report))
    findings = finding_lines(found, strength, settings)
    for line in findings:
        console.print(line, soft_wrap=True)
    console.print(f"every fine-tune: {escape(str(folder / 'attack.parquet'))}", soft_wrap=True)
    console.print(f"figures: {', '.join(escape(str(folder / name)) for name in FIGURES)}", soft_wrap=True)
    return findings


def _add_to_run(tracked: TrackedRun, label: str, found: Assessment, folder: Path, *, verdict: str) -> None:
    """Metrics, verdict and files of the attack, beside what the run has."""
    from sdm_ray.tracking.artifacts import add_to_run

    metrics = {Metric.again(label, name): value for name, value in found.metrics.items()}
    files = [folder / name for name in (*FILES, *FIGURES) if (folder / name).is_file()]
    try:
        add_to_run(tracked, metrics=metrics, tags={f"attack.{label}": verdict}, files=files, folder=f"attacks/{label}")
    except RunError as error:
        raise RunError(f"{error}; the attack is in {folder}, but run {tracked.run_id} did not get it") from None
    console.print(f"run {tracked.run_id} ({escape(tracked.name)}) has it as attack {label}", soft_wrap=True)


@contextmanager
def _runner(ray_address: str | None, device: str, modules: dict[str, str]) -> Iterator[Any]:
    """What runs fine-tunes: this process, or the workers of a cluster, which `local` starts on this machine."""
    if ray_address is None:
        yield None
        return
    from sdm_ray.config import ResourceSettings
    from sdm_ray.sweep.cluster.attack_runner import ray_runner
    from sdm_ray.sweep.cluster.connection import cluster

    resources = ResourceSettings(ray_address=ray_address, cpus_per_trial=1, gpus_per_trial=int(device == "cuda"))
    with cluster(resources) as num_workers:
        yield ray_runner(resources, num_workers, modules)


def attack_settings(
    config: Path | None, preset: str | None, overrides: tuple[str, ...], released: TrialSettings | None
) -> TrialSettings:
    """The trial whose data and attack are used: that of a file, else the defaults on the data that the release names.

    A released folder is a stranger's: it says what it was made from and trained for, and nothing about how it is
    attacked, what it is compared with, where anything is read from or written to, or what code is loaded. A preset
    replaces the whole attack but its seed.
    """
    if config is not None and preset is None:
        return load_settings(TrialSettings, config, overrides)
    document: Any = {}
    if config is not None:
        load_settings(TrialSettings, config)  # says what is wrong with the file itself
        document = read_document(config)
    elif released is not None:
        document = released.model_dump(mode="json", include=set(BELIEVED))
        document["train"].pop("term_modules")
    if preset is not None:
        seed = (document.get("attack") or {}).get("seed", 0)
        document["attack"] = {"preset": preset, "seed": seed}
    return parse_settings(TrialSettings, document, overrides)


def _released_encoder(model: str, settings: TrialSettings, public: EncoderSettings | None) -> EncoderSettings:
    pooling = settings.encoder.pooling if public is None else public.pooling
    return EncoderSettings(name=model, pooling=pooling)
