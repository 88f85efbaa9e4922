"""The reference `scratch`: random initialisation trained on the desired task, with the best of a few learning rates.

Its only head start is what the desired labels reveal, so a defence that keeps no more and blocks no more than this
reference has not used the encoder. It is trained once for all trials that share data, architecture and seed, and cached
by content hash.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.config import EncoderSettings, ScratchSettings, TrainSettings, digest
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Params, Split
from sdm_ray.meta.cost import added
from sdm_ray.meta.trainer import Trainer
from sdm_ray.models.encoder import Trunk
from sdm_ray.trial.kept import Kept, trained_once
from sdm_ray.trial.workspace import Workspace

FORMAT_VERSION = 1
"""Version of the training; increase it when the same settings give other weights."""
HEAD_RATE_FACTOR = 3.0
"""Learning rate of the desired head, relative to the trunk's."""
_HEAD = "sdm_ray.desired_head"


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """An encoder trained from scratch."""

    trunk: Trunk
    """Architecture; its own weights are those of the initialisation."""
    params: Params
    """Trained weights."""
    head: Tensor
    """(C, D) head of the desired task."""
    learning_rate: float
    """Best learning rate of the settings."""
    num_steps: int
    """Steps up to the best desired accuracy on attacker-validation."""
    seconds: float
    """Training time of all learning rates together."""
    costs: dict[str, float] = field(default_factory=dict)
    """Texts and FLOPs of all learning rates together, as metrics; empty for results from before they were counted."""


@dataclass
class _Run:
    """Training at one learning rate."""

    trainer: Trainer
    steps: Generator[Progress, None, object]
    learning_rate: float
    best: tuple[float, float] = (-1.0, 0.0)
    """(accuracy, negative loss) on attacker-validation."""
    weights: tuple[Params, Tensor] | None = None
    num_steps: int = 0
    stale: int = 0
    """Number of scorings since the best one."""


def train_scratch(
    work: Workspace, encoder: EncoderSettings, settings: ScratchSettings, seed: int
) -> Generator[Progress, None, Scratch]:
    """Train the reference, or read it from the cache.

    Every learning rate is tried for `settings.screen_steps` steps; the best one continues until the desired accuracy on
    attacker-validation has not risen for `settings.patience` scorings. The best weights are kept.

    Args:
        work: data and device.
        encoder: the architecture.
        settings: learning rates and steps.
        seed: seed of initialisation and batches.
    """
    trunk = work.trunk(encoder, "random", seed)
    key = digest([FORMAT_VERSION, trunk.digest(), work.data.digest, settings.identity(), seed])

    def unpack(kept: Kept) -> Scratch:
        params = dict(kept.tensors)
        return Scratch(trunk=trunk, head=params.pop(_HEAD), params=params, **kept.facts)

    train = partial(_train, work, trunk, settings, seed)
    found = yield from trained_once(work, "scratch", key, train, pack=_pack, unpack=unpack)
    return found


def _train(work: Workspace, trunk: Trunk, settings: ScratchSettings, seed: int) -> Generator[Progress, None, Scratch]:
    started = time.perf_counter()
    runs = [_run(work, trunk, settings, rate, seed) for rate in settings.learning_rates]
    screened = 0
    for run in runs:
        for _ in range(settings.screen_steps // settings.every_steps):
            _advance(run, work, trunk)
            screened += settings.every_steps
            yield Progress("scratch", screened, settings.screen_steps * len(runs), {})
    best = max(runs, key=lambda run: run.best)
    while best.stale < settings.patience and best.trainer.done < settings.max_steps:
        _advance(best, work, trunk)
        yield Progress("scratch", best.trainer.done, settings.max_steps, {})
    for run in runs:
        run.steps.close()
    assert best.weights is not None
    return Scratch(
        trunk=trunk,
        params=best.weights[0],
        head=best.weights[1],
        learning_rate=best.learning_rate,
        num_steps=best.num_steps,
        seconds=time.perf_counter() - started,
        costs=added(*(run.trainer.costs() for run in runs)),
    )


def _run(work: Workspace, trunk: Trunk, settings: ScratchSettings, rate: float, seed: int) -> _Run:
    train = TrainSettings(
        method="tuned",
        num_outer_steps=settings.max_steps,
        learning_rate=rate,
        head_learning_rate=HEAD_RATE_FACTOR * rate,
        desired_batch_size=settings.batch_size,
        log_every_steps=settings.every_steps,
        checkpoint_every_steps=settings.max_steps,
    )
    trainer = Trainer(train, trunk=trunk, data=work.data, seed=seed)
    return _Run(trainer, trainer.iterate(), rate)


def _advance(run: _Run, work: Workspace, trunk: Trunk) -> None:
    """Train up to the next row of the log, then score."""
    next(run.steps)
    params, head = run.trainer.weights()
    accuracy, loss = desired_scores(trunk, params, head, work.data, Split.ATTACKER_VAL)
    run.stale += 1
    if accuracy > run.best[0]:
        run.stale = 0
    if (accuracy, -loss) > run.best:
        run.best, run.num_steps = (accuracy, -loss), run.trainer.done
        run.weights = {name: value.detach().clone() for name, value in params.items()}, head


def _pack(found: Scratch) -> Kept:
    facts: dict[str, Any] = {
        "learning_rate": found.learning_rate,
        "num_steps": found.num_steps,
        "seconds": found.seconds,
    }
    facts["costs"] = found.costs
    return Kept({**found.params, _HEAD: found.head}, facts)
