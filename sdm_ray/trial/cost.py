"""Cost of a trial, estimated from a few outer steps and a small part of its attack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sdm_ray.attack.protocol import attack_model
from sdm_ray.config import AttackSettings, EraseSettings, TrainSettings, TrialSettings
from sdm_ray.core.progress import run_through
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Task
from sdm_ray.meta.outer.distil import Distillation, Model
from sdm_ray.meta.trainer import Trainer, peak_bytes
from sdm_ray.models.encoder import Trunk
from sdm_ray.models.heads import init_head
from sdm_ray.trial.context import ALONE, TrialContext
from sdm_ray.trial.distilled import distillation_of
from sdm_ray.trial.release import Release, knowledge_of
from sdm_ray.trial.workspace import Workspace, check_attack, general_sources, open_workspace, trunk_params

WARM_UP_STEPS, TIMED_STEPS = 3, 12
"""Untimed outer steps at the start, and timed outer steps."""
MAX_POINTS, MAX_RERUNS = 8, 4
"""Search points and re-runs in the timed part of an attack: enough to fill stacks as the full attack does."""
SHORTENED = (20, 5)
"""Divisors of fine-tune steps in two timings. Their difference gives the time of a step, the rest is scoring; with
timings that lie closer together, a moment's load on the machine would decide the estimate."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measured costs, in seconds and bytes on this machine."""

    device: str
    seconds_per_step: float
    """Time of an outer step with the largest number of inner steps."""
    seconds_per_fine_tune: float
    """Time of a fine-tune of the trial's attack, mean over search and re-runs."""
    memory_bytes: int
    """Peak memory so far: of the GPU, or of this process if there is no GPU."""
    seconds_of_first_step: float | None = None
    """Time of an outer step at the beginning, if the number of inner steps grows; otherwise None."""
    seconds_per_distil_step: float = 0.0
    """Time of a distillation step; 0 without distillation."""

    def training_seconds(self, trial: TrialSettings) -> float:
        """Time of one trial's meta-training and distillation; an outer step's time grows with its inner steps."""
        distilling = self.seconds_per_distil_step * trial.train.distil.num_steps
        total, growing = trial.train.num_outer_steps, trial.train.adversary.growing_steps
        if self.seconds_of_first_step is None or not growing:
            return self.seconds_per_step * total + distilling
        first, last = self.seconds_of_first_step, self.seconds_per_step
        grown = min(growing, total)
        reached = first + (last - first) * grown / growing
        return grown * (first + reached) / 2 + (total - grown) * last + distilling

    def attack_seconds(self, attack: AttackSettings, like: AttackSettings) -> float:
        """Time of `attack` on one model, from fine-tunes timed with the settings `like`."""
        longer = (attack.num_steps_min + attack.num_steps_max) / (like.num_steps_min + like.num_steps_max)
        return self.seconds_per_fine_tune * longer * num_fine_tunes(attack)


def num_fine_tunes(attack: AttackSettings) -> int:
    """Number of fine-tunes of an attack on one model, with benign tasks, without retries and halving."""
    sizes = len(attack.num_examples) + 2 * len(attack.benign_num_examples)
    return sizes * attack.num_fine_tunes


def probe(settings: TrialSettings, context: TrialContext = ALONE) -> Probe:
    """Time the parts of a trial in this process.

    Raises:
        UsageError: if the settings cannot work.
        RunError: if training diverges during the probe.
    """
    import torch

    torch.set_num_threads(settings.runtime.num_threads)
    work = open_workspace(settings, context)
    check_attack(work, settings.attack)
    trunk = work.trunk(settings.encoder, "pretrained", settings.seed)
    general = general_sources(work, settings, trunk)

    def seconds_per_step(train: TrainSettings, distillation: Distillation | None = None) -> float:
        trainer = Trainer(
            train, trunk=trunk, data=work.data, seed=settings.seed, general=general, distillation=distillation
        )
        return _seconds_per_step(trainer)

    train = _probed(settings.train)
    grows = settings.train.adversary.growing_steps > 0
    first = seconds_per_step(_with_fewest_inner_steps(train)) if grows else None
    each, distilling = seconds_per_step(train), 0.0
    if settings.train.distil.moves():
        head = init_head(trunk.feature_dim, work.data.num_classes(Task.DESIRED), seeded(0), device=work.device)
        teacher = Model(trunk_params(trunk), head)
        distillation = distillation_of(settings, work, trunk, teacher)
        distilling = seconds_per_step(_probed(settings.train.of_distillation()), distillation)
    slices = [_slice(settings.attack, shortened) for shortened in SHORTENED]
    short, long = (_slice_seconds(work, trunk, settings, attack) for attack in slices)
    steps = [_mean_steps(attack) for attack in (*slices, settings.attack)]
    whole = extrapolated(steps, short, long)
    return Probe(
        device=str(work.device),
        seconds_per_step=each,
        seconds_of_first_step=first,
        seconds_per_distil_step=distilling,
        seconds_per_fine_tune=whole / num_fine_tunes(slices[0]),
        memory_bytes=peak_bytes(work.device),
    )


def _probed(train: TrainSettings) -> TrainSettings:
    """Settings of a few outer steps at full cost: no growth of inner steps, no stop by validation."""
    return train.model_copy(
        update={
            "num_outer_steps": WARM_UP_STEPS + TIMED_STEPS + 1,
            "log_every_steps": 1,
            "warmup_steps": 0,
            "adversary": train.adversary.model_copy(update={"growing_steps": 0}),
            "erase": EraseSettings(),  # cheap per step, but slow to find
            "validation": train.validation.model_copy(update={"min_desired_accuracy": None}),
        }
    )


def _with_fewest_inner_steps(train: TrainSettings) -> TrainSettings:
    fewest = min(train.adversary.num_steps, train.adversary.num_steps_min or 1)
    adversary = train.adversary.model_copy(update={"num_steps": fewest, "num_steps_min": None})
    return train.model_copy(update={"adversary": adversary})


def _seconds_per_step(trainer: Trainer) -> float:
    steps = trainer.iterate()
    for _ in range(WARM_UP_STEPS):
        next(steps)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        next(steps)
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    steps.close()
    return seconds


def extrapolated(steps: Sequence[float], short: float, long: float) -> float:
    """Time of a part of an attack with all its steps.

    Args:
        steps: mean steps of a fine-tune in the short timing, in the long one, and in the attack.
        short: seconds of the short timing.
        long: seconds of the long timing.
    """
    first, second, whole = steps
    if second <= first:  # an attack of very few steps is not shortened
        return max(short, long)
    return short + max(0.0, long - short) * max(0.0, whole - first) / (second - first)


def _mean_steps(attack: AttackSettings) -> float:
    return (attack.num_steps_min + attack.num_steps_max) / 2


def _slice_seconds(work: Workspace, trunk: Trunk, settings: TrialSettings, attack: AttackSettings) -> float:
    """Time of a part of the attack on the untrained encoder."""
    release = Release(trunk=trunk, params=trunk_params(trunk), encoder=settings.encoder)
    generator = attack_model(
        trunk,
        release.params,
        work.data,
        attack,
        sampler=work.sampler(attack.sampler),
        knowledge=knowledge_of(work, release, attack),
    )
    started = time.perf_counter()
    run_through(generator, lambda progress: None)
    return time.perf_counter() - started


def _slice(attack: AttackSettings, shortened: int) -> AttackSettings:
    sizes = sorted((n for n in attack.num_examples if isinstance(n, int)), key=int)[-1:] or attack.num_examples[:1]
    changes = {
        "num_examples": sizes,
        "num_search_trials": min(MAX_POINTS, attack.num_search_trials),
        "num_search_seeds": 1,
        "num_rerun_seeds": min(MAX_RERUNS, attack.num_rerun_seeds),
        "num_searches": 1,
        "halving": False,
        "num_steps_min": max(1, attack.num_steps_min // shortened),
        "num_steps_max": max(1, attack.num_steps_max // shortened),
        "benign_num_examples": (),
        "preset": None,
    }
    return AttackSettings.model_validate(attack.model_dump() | changes)
