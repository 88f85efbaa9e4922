"""Run of a trial: settings in, result out (train, release, attack). Works without Ray, Optuna and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdm_ray.attack.families import own_families
from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.config import AttackSettings, TrialSettings, content_hash, digest, load_own_modules, to_yaml
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import remove, write_text
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress, run_through
from sdm_ray.core.result import Status, TrialResult, other_inputs, readable_result, write_result
from sdm_ray.core.types import Split, Task
from sdm_ray.figures.style import LABELS
from sdm_ray.figures.training import FIGURE, trajectory_figure
from sdm_ray.meta.cost import added
from sdm_ray.meta.trainer import Trainer
from sdm_ray.models.encoder import params_digest
from sdm_ray.models.export import export_model, export_weights
from sdm_ray.trial.assess import assess
from sdm_ray.trial.context import ALONE, TrialContext
from sdm_ray.trial.distilled import CHECKPOINT, distilled
from sdm_ray.trial.dry import dry_pass
from sdm_ray.trial.erased import REPORT, found_erasure, write_erasure
from sdm_ray.trial.release import Release
from sdm_ray.trial.rungs import Rungs
from sdm_ray.trial.scratch import train_scratch
from sdm_ray.trial.training_log import LOG, TRAJECTORY, write_log, write_trajectory
from sdm_ray.trial.workspace import (
    Initialisation,
    Workspace,
    check_attack,
    general_sources,
    open_workspace,
    with_pooling,
)

if TYPE_CHECKING:
    from sdm_ray.meta.trainer import TrainOutcome
    from sdm_ray.models.encoder import Trunk


def iterate_trial(
    settings: TrialSettings, output_dir: Path, *, trial_id: str = "trial", context: TrialContext = ALONE
) -> Generator[Progress, None, TrialResult]:
    """Train, release and attack one model, yielding wherever it may be interrupted.

    Called again with the same settings and folder, it resumes from the last checkpoint, or returns the existing result.
    A trial whose training is stopped by validation ends as infeasible: it is neither attacked nor exported.

    Args:
        settings: the trial.
        output_dir: its folder: `config.yaml`, `checkpoint/` during training, `rungs.json` if there are rungs,
            `erasure.json` if directions are erased, then `train.parquet`, `trajectory.parquet` and `trajectory.png`,
            `attack.parquet`, `attack.json`, `audit.json`, `model/` and, last, `result.json`.
        trial_id: name of the trial in its sweep.
        context: samplers and shared caches; the default needs neither Ray nor Optuna.

    Raises:
        UsageError: if the settings cannot work, or the folder holds another trial or one on other data.
        RunError: if training diverges or a file cannot be written.
    """
    settings = with_pooling(load_own_modules(settings))
    finished = claim_folder(settings, output_dir)
    torch.set_num_threads(settings.runtime.num_threads)
    work = open_workspace(settings, context)
    initialisation: Initialisation = "random" if settings.train.method in ("random", "scratch") else "pretrained"
    if finished is not None:
        check_inputs_of(finished, work, work.trunk(settings.encoder, initialisation, settings.seed))
        return finished
    check_attack(work, settings.attack)  # before hours of training
    trunk = work.trunk(settings.encoder, initialisation, settings.seed)
    if not (output_dir / "checkpoint").exists():
        dry_pass(work, trunk, settings)
    if settings.train.method == "scratch":
        outcome = yield from _train_scratch(settings, work)
    else:
        outcome = yield from _train(settings, work, trunk, output_dir)
    _report_training(settings, work, outcome, output_dir)
    if outcome.stopped is None:
        release = Release.of(settings, trunk=trunk, params=outcome.params, desired_head=outcome.desired_head)
        found = yield from assess(work, release, settings.attack, seed=settings.seed, scratch=settings.own_scratch())
        found.write(output_dir)
        checks = found.checks()
        metrics = found.metrics | {str(Metric.COST_TRAIN_SECONDS): outcome.seconds} | outcome.costs
        _export(settings, work, release, metrics, output_dir / "model", failed=tuple(checks["failed_checks"]))
    else:
        metrics, checks = _stopped_metrics(work, trunk, outcome), {}
    result = TrialResult(
        trial_id=trial_id,
        config_hash=content_hash(settings),
        method=settings.train.method,
        seed=settings.seed,
        status=Status.COMPLETE if outcome.stopped is None else Status.INFEASIBLE,
        metrics=metrics,
        output_dir=output_dir,
        error=outcome.stopped,
        provenance=_provenance(settings, work, trunk) | {"weights": params_digest(outcome.params)},
        **checks,
    )
    write_result(result)
    remove(output_dir / "checkpoint")
    return result


def run_trial(
    settings: TrialSettings,
    output_dir: Path,
    *,
    trial_id: str = "trial",
    on_progress: Callable[[Progress], None] | None = None,
    context: TrialContext = ALONE,
) -> TrialResult:
    """Run `iterate_trial` to its end; `on_progress` is called with every step."""
    work = iterate_trial(settings, output_dir, trial_id=trial_id, context=context)
    return run_through(work, on_progress or (lambda progress: None))


def claim_folder(settings: TrialSettings, output_dir: Path) -> TrialResult | None:
    """Write `config.yaml` into a trial's folder, or return the result that is there; a damaged one is moved aside.

    Raises:
        UsageError: if it holds the result of other settings.
    """
    finished = readable_result(output_dir)
    if finished is not None and finished.config_hash != content_hash(settings):
        raise UsageError(
            f"{output_dir} holds the result of config {finished.config_hash}, not {content_hash(settings)}; "
            "choose another output folder or remove this one"
        )
    if finished is None:
        write_text(output_dir / "config.yaml", to_yaml(settings))
    return finished


def check_inputs_of(finished: TrialResult, work: Workspace, trunk: Trunk | None = None) -> None:
    """Reject a result that was measured on other data or, if a trunk is given, with another encoder.

    Raises:
        UsageError: naming both.
    """
    now = {"data": work.data.digest} if trunk is None else {"data": work.data.digest, "encoder": trunk.digest()}
    problem = other_inputs(finished.provenance, now)
    if problem is not None:
        raise UsageError(
            f"{finished.output_dir} holds the result of other inputs: {problem}; restore what was there, choose "
            "another output folder, or remove this one"
        )


def attack_digest(attack: AttackSettings) -> str:
    """Hash of everything that makes attacks comparable: settings except the seed, and user-defined families."""
    own = own_families((*attack.families, *attack.benign_families))
    settings = attack.identity(exclude={"seed"})
    return digest(settings | {"own_families": own} if own else settings)


def _provenance(settings: TrialSettings, work: Workspace, trunk: Trunk) -> dict[str, str]:
    name = torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu"
    return {
        "data": work.data.digest,
        "data_source": settings.data.source,
        "attack": attack_digest(settings.attack),
        "encoder": trunk.digest(),
        "encoder_name": settings.encoder.name,
        "device": name,
        "sdm_ray": version("sdm-ray"),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _train(
    settings: TrialSettings, work: Workspace, trunk: Trunk, output_dir: Path
) -> Generator[Progress, None, TrainOutcome]:
    """Train, attack the model at its rungs, and distil it; if training fails, the log so far is written."""
    rungs = Rungs(settings, output_dir)
    erased = yield from found_erasure(work, settings, trunk)
    if erased is not None:
        write_erasure(erased, output_dir / REPORT)
    trainer = Trainer(
        settings.train,
        trunk=trunk,
        data=work.data,
        seed=settings.seed,
        checkpoint_dir=output_dir / "checkpoint",
        general=general_sources(work, settings, trunk),
        erasure=None if erased is None else erased.erasure,
        pauses=rungs.steps,
    )
    yield from rungs.measured_before()
    steps = trainer.iterate()
    try:
        while True:
            yield next(steps)
            if rungs.is_due(trainer.done):
                params, head = trainer.weights()
                release = Release.of(settings, trunk=trunk, params=params, desired_head=head)
                yield from rungs.measure(trainer.done, work, release)
    except StopIteration as stop:
        outcome: TrainOutcome = stop.value
    except RunError:
        with suppress(RunError):  # the disk may have failed
            if trainer.log:
                write_log(trainer.log, output_dir / LOG)
        raise
    if erased is not None:
        costs = added(outcome.costs, erased.costs)
        outcome = replace(outcome, seconds=outcome.seconds + erased.seconds, costs=costs)
    if outcome.stopped is not None:
        return outcome
    kept_out = None if erased is None else erased.erasure
    folder = output_dir / "checkpoint" / CHECKPOINT
    return (yield from distilled(settings, work, trunk, outcome, erasure=kept_out, checkpoint_dir=folder))


def _train_scratch(settings: TrialSettings, work: Workspace) -> Generator[Progress, None, TrainOutcome]:
    from sdm_ray.meta.trainer import TrainOutcome

    assert settings.scratch is not None
    found = yield from train_scratch(work, settings.encoder, settings.scratch, settings.seed)
    row = {"train/step": float(found.num_steps), "train/learning_rate": found.learning_rate}
    return TrainOutcome(
        params=found.params, desired_head=found.head, log=[row], seconds=found.seconds, costs=found.costs
    )


def _report_training(settings: TrialSettings, work: Workspace, outcome: TrainOutcome, output_dir: Path) -> None:
    write_log(outcome.log, output_dir / LOG)
    start, end = outcome.trajectory_start, outcome.trajectory_end
    if start is not None and end is not None:
        write_trajectory(start, end, output_dir / TRAJECTORY)
        method, num_classes = settings.train.method, work.data.num_classes(Task.HARMFUL)
        trajectory_figure(start, end, output_dir / FIGURE, num_classes=num_classes, method=LABELS.get(method, method))


def _export(
    settings: TrialSettings,
    work: Workspace,
    release: Release,
    metrics: dict[str, float],
    folder: Path,
    *,
    failed: Sequence[str],
) -> None:
    """Write the model as a Hugging Face folder with a card, or as bare weights if its inputs are vectors."""
    assert release.desired_head is not None
    if work.tokenizer is None:
        export_weights(folder, release.params, release.desired_head)
        return
    export_model(
        folder,
        trunk=release.trunk,
        params=release.params,
        desired_head=release.desired_head,
        tokenizer=work.tokenizer,
        label_names=work.data.label_names(Task.DESIRED),
        settings=settings,
        metrics=metrics,
        failed_checks=failed,
    )


def _stopped_metrics(work: Workspace, trunk: Trunk, outcome: TrainOutcome) -> dict[str, float]:
    """Metrics of an infeasible model, which is not attacked."""
    accuracy, loss = desired_scores(trunk, outcome.params, outcome.desired_head, work.data, Split.TEST)
    validated = {name: outcome.log[-1][name] for name in (Metric.VALIDATION_ACCURACY, Metric.VALIDATION_LOSS)}
    return {
        str(Metric.DESIRED_ACCURACY): accuracy,
        str(Metric.DESIRED_LOSS): loss,
        **{str(name): value for name, value in validated.items()},
        str(Metric.COST_TRAIN_SECONDS): outcome.seconds,
        **outcome.costs,
    }
