"""Distillation phase after a training, with its own checkpoints."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdm_ray.config import TrialSettings
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.meta.cost import added
from sdm_ray.meta.outer.distil import Distillation, Model, perturbed
from sdm_ray.meta.trainer import Trainer, TrainOutcome
from sdm_ray.models.encoder import Trunk
from sdm_ray.trial.workspace import Workspace, distillation_texts, general_sources

if TYPE_CHECKING:
    from sdm_ray.models.erasure import Erasure

CHECKPOINT = "distil"
"""Folder of its checkpoints within the training's checkpoint folder."""


def distilled(
    settings: TrialSettings,
    work: Workspace,
    trunk: Trunk,
    teacher: TrainOutcome,
    *,
    erasure: Erasure | None,
    checkpoint_dir: Path,
) -> Generator[Progress, None, TrainOutcome]:
    """Distil a trained model according to `train.distil`; returns the model itself if there are no steps.

    Args:
        settings: the trial.
        work: data and device.
        trunk: the public encoder.
        teacher: the trained model.
        erasure: directions that are also erased from the student's residual stream.
        checkpoint_dir: folder of the last checkpoint.

    Returns:
        The student with the log of both phases (steps count on), seconds, and the training's final trajectory if the
        distillation has no adversaries.

    Raises:
        UsageError: for unusable texts.
        RunError: as in `Trainer.iterate`.
    """
    distil = settings.train.distil
    if not distil.moves():
        return teacher
    distillation = distillation_of(settings, work, trunk, Model(teacher.params, teacher.desired_head))
    phase = settings.train.of_distillation()
    trainer = Trainer(
        phase,
        trunk=trunk,
        data=work.data,
        seed=settings.seed,
        checkpoint_dir=checkpoint_dir,
        general=general_sources(work, settings.model_copy(update={"train": phase}), trunk),
        erasure=erasure,
        distillation=distillation,
    )
    before = settings.train.num_outer_steps
    steps = trainer.iterate()
    try:
        while True:
            progress = next(steps)
            done, total = progress.done + before, progress.total + before
            yield progress._replace(done=done, total=total, metrics=_counted_on(progress.metrics, before))
    except StopIteration as stop:
        student: TrainOutcome = stop.value
    texts = float(distillation.texts_per_step * phase.accumulation_steps * trainer.done)
    costs = {
        str(Metric.COST_DISTIL_SECONDS): student.seconds,
        str(Metric.COST_DISTIL_TEXTS): texts,
        str(Metric.COST_DISTIL_SPEED): texts / max(student.seconds, 1e-9),
    }
    return replace(
        student,
        log=[*teacher.log, *(_counted_on(row, before) for row in student.log)],
        seconds=teacher.seconds + student.seconds,
        trajectory_start=teacher.trajectory_start,
        trajectory_end=student.trajectory_end or teacher.trajectory_end,
        costs=added(teacher.costs, student.costs) | costs,
    )


def distillation_of(settings: TrialSettings, work: Workspace, trunk: Trunk, teacher: Model) -> Distillation:
    """Set up a distillation: teacher, shrunk and perturbed student, and the texts named by `train.distil`.

    Raises:
        UsageError: for unusable texts.
    """
    distil = settings.train.distil
    desired, general = distillation_texts(work, settings, distil, trunk)
    return Distillation(
        distil,
        trunk=trunk,
        teacher=teacher,
        student=perturbed(trunk, teacher, distil.alphas(), settings.seed),
        desired=desired,
        general=general,
        seed=settings.seed,
    )


def _counted_on(row: dict[str, float], before: int) -> dict[str, float]:
    """Row of the log, with its step offset by the training's steps."""
    step = str(Metric.TRAIN_STEP)
    return row | ({step: row[step] + before} if step in row else {})
