"""The trainer: steps, a log that is read from the device once an interval, validation, checkpoints, exact resume."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.config.train import UNTRAINED
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Params
from sdm_ray.data.interface import TrainingDataset
from sdm_ray.meta.checkpoint import load_checkpoint, save_checkpoint
from sdm_ray.meta.cost import TrainingCost
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike
from sdm_ray.meta.log import MetricLog, diverged
from sdm_ray.meta.outer.linear import LinearStep
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.meta.validation import Validation, split_meta_train

if TYPE_CHECKING:
    from sdm_ray.meta.outer.distil import Distillation
    from sdm_ray.meta.outer.retention import GeneralSources
    from sdm_ray.models.erasure import Erasure

GENERATORS = (
    "desired", "harmful", "adversary", "desired_adversary", "pool", "heads", "retain", "starts", "pool_starts",
    "representation_noise", "head_kinds", "pool_head_kinds",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """A trained model."""

    params: Params
    """The trunk's parameters, on the data's device."""
    desired_head: Tensor
    """(C, D)."""
    log: list[dict[str, float]]
    """Rows by rising `train/step`: the means of an interval, what a validation measured after that step, or both. They
    do not depend on interruptions."""
    seconds: float
    """Wall time of the training loop, interruptions excluded."""
    stopped: str | None = None
    """Why training ended before its last step, as a sentence."""
    trajectory_start: dict[int, float] | None = None
    """Adapted harmful losses by inner step, from 0 to K, before training; None where no adversary is simulated."""
    trajectory_end: dict[int, float] | None = None
    """The same after training."""
    costs: dict[str, float] = field(default_factory=dict)
    """Further metrics of what training cost, by name."""


class Step(Protocol):
    """What the trainer drives: `OuterStep` or `LinearStep`."""

    metric_names: tuple[str, ...]
    model: FlatModel
    trunk: Tensor

    @property
    def desired_head(self) -> Tensor: ...

    @property
    def num_texts(self) -> int: ...

    def step(self) -> Tensor: ...

    def describe_draw(self) -> str: ...

    def probe(self) -> dict[int, float] | None: ...

    def params(self) -> Params: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """Meta-training of one model.

    Args:
        settings: the training.
        trunk: the encoder that the method starts from (the caller re-initialises it for `random`), on the data's
            device; it is not written to.
        data: examples on the device.
        seed: of heads, batches and adversaries.
        checkpoint_dir: where the last checkpoint is kept and looked for; None keeps none.
        general: text and masked-LM head of the `retain_*` terms; None where none is on.
        erasure: what is kept out of the residual stream (`settings.erase`, found by `outer.erase`).
        distillation: what is descended in place of the desired loss, and where it starts; the settings are then
            those of `TrainSettings.of_distillation`.
        pauses: outer steps after which a checkpoint is due and `iterate` yields, whatever else is due.

    Raises:
        UsageError: for settings that cannot work: an optimiser or schedule that torch does not have, a few-shot subset
            larger than what is trained on, a validation that leaves nothing to train on.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        trunk: TrunkLike,
        data: TrainingDataset,
        seed: int,
        checkpoint_dir: Path | None = None,
        general: GeneralSources | None = None,
        erasure: Erasure | None = None,
        distillation: Distillation | None = None,
        pauses: Collection[int] = (),
    ) -> None:
        assert (erasure is not None) == settings.erase.is_on(), "what is erased is found beforehand"
        self._settings, self._checkpoint_dir, self._device = settings, checkpoint_dir, data.device
        indices, held_out = split_meta_train(data, settings)
        generators = Generators(seed, GENERATORS)
        self._step: Step
        if settings.method in UNTRAINED:
            self._step = LinearStep(settings, trunk=trunk, data=data, generators=generators, indices=indices)
        else:
            self._step = OuterStep(
                settings,
                trunk=trunk,
                data=data,
                generators=generators,
                indices=indices,
                general=general,
                erasure=erasure,
                distillation=distillation,
            )
        self._texts_per_step = 0
        self._validation = Validation(data, held_out, settings)
        self._log = MetricLog(self._step.metric_names, settings.log_every_steps, data.device)
        self._identity = {
            "train": settings.identity(),
            "data": data.digest,
            "encoder": trunk.digest(),
            "seed": seed,
        }
        if distillation is not None:
            self._identity["teacher"] = distillation.teacher.digest()
            self._texts_per_step = distillation.texts_per_step * settings.accumulation_steps
        self._cost = TrainingCost(settings.num_outer_steps, compiled=settings.compile)
        self._pauses = frozenset(pauses)
        self._done = 0
        self._seconds = 0.0
        self._stopped: str | None = None
        self._trajectory: dict[int, float] | None = None

    @property
    def log(self) -> list[dict[str, float]]:
        """Rows of the training log so far."""
        return self._log.rows

    @property
    def done(self) -> int:
        """Outer steps done."""
        return self._done

    def weights(self) -> tuple[Params, Tensor]:
        """The trunk's parameters and the desired head (C, D) as they are now."""
        return self._step.params(), self._step.desired_head.detach().clone()

    def iterate(self) -> Generator[Progress, None, TrainOutcome]:
        """Train, yielding a `Progress` every log interval and validation, after any checkpoint due at that step.

        Where `checkpoint_dir` holds a checkpoint of the same run, training goes on from it and ends with the same
        parameters and log, bit for bit (CPU, same number of threads).

        Raises:
            UsageError: when the checkpoint there is of another run.
            RunError: when a metric or the weights are no longer finite (the last good checkpoint is kept), or a
                checkpoint cannot be read or written.
        """
        total = self._settings.num_outer_steps
        if not self._resume():
            self._trajectory = self._step.probe()
        start, earlier, since = time.perf_counter(), self._seconds, self._done
        while self._done < total and self._stopped is None:
            row = self._advance()
            elapsed = time.perf_counter() - start
            self._seconds = earlier + elapsed
            pauses = self._done in self._pauses
            if self._ends() or pauses or self._done % self._settings.checkpoint_every_steps == 0:
                self._save()
            if row is not None or pauses:
                costs = self._costs((self._done - since) / max(elapsed, 1e-9))
                left = time.perf_counter()
                yield Progress("distil" if self._texts_per_step else "train", self._done, total, (row or {}) | costs)
                start += time.perf_counter() - left  # time spent outside the generator is not training time
        return TrainOutcome(
            params=self._step.params(),
            desired_head=self._step.desired_head.detach().clone(),
            log=self._log.rows,
            seconds=self._seconds,
            stopped=self._stopped,
            trajectory_start=self._trajectory,
            trajectory_end=self._step.probe(),
            costs=self.costs(),
        )

    def costs(self) -> dict[str, float]:
        """Texts and FLOPs of the steps done, by metric; what is not known is left out."""
        return self._cost.metrics(self._done)

    def _advance(self) -> dict[str, float] | None:
        """One outer step with what is due after it; the row of that step where there is one."""
        with self._cost.measuring(self._done):
            values = self._step.step()
        self._cost.add_texts(self._step.num_texts)
        self._done += 1
        self._log.add(self._done, values, self._step.describe_draw())
        measured: dict[str, float] = {}
        if self._validation.due(self._done):
            self._log.check()  # a diverged run fails here, not in the validation
            measured = self._validation.measure(self._step.model, self._step.trunk, self._step.desired_head)
            self._stopped = self._validation.judge(self._done, measured[Metric.VALIDATION_ACCURACY])
        row = None
        if self._ends() or self._done % self._settings.log_every_steps == 0:
            row = self._log.close_row(self._done)
        return self._log.note(self._done, measured) if measured else row

    def _ends(self) -> bool:
        return self._done == self._settings.num_outer_steps or self._stopped is not None

    def _costs(self, speed: float) -> dict[str, float]:
        """Speed, time left and memory: they depend on the machine, so the reproducible log leaves them out."""
        texts = {str(Metric.TRAIN_TEXT_SPEED): speed * self._texts_per_step} if self._texts_per_step else {}
        return texts | {
            str(Metric.TRAIN_SPEED): speed,
            str(Metric.TRAIN_SECONDS_LEFT): (self._settings.num_outer_steps - self._done) / speed,
            str(Metric.COST_MEMORY_BYTES): float(peak_bytes(self._device)),
        }

    def _save(self) -> None:
        self._log.check()
        step = self._step.state_dict()
        if not _is_finite(step):
            raise diverged(self._done, "weights", None, self._log.last_draw)
        if self._checkpoint_dir is None:
            return
        trajectory = self._trajectory
        state = {
            "step": step,
            "log": self._log.state_dict(),
            "validation": self._validation.state_dict(),
            "seconds": self._seconds,
            "stopped": self._stopped,
            "cost": self._cost.state_dict(),
            # A tensor, because JSON has no NaN.
            "trajectory": None if trajectory is None else torch.tensor(list(trajectory.items()), dtype=torch.float64),
        }
        save_checkpoint(self._checkpoint_dir, self._done, self._identity, state)

    def _resume(self) -> bool:
        if self._checkpoint_dir is None:
            return False
        found = load_checkpoint(self._checkpoint_dir, self._identity, self._device)
        if found is None:
            return False
        self._done, state = found
        self._step.load_state_dict(state["step"])
        self._log.load_state_dict(state["log"])
        self._validation.load_state_dict(state["validation"])
        self._seconds, self._stopped = state["seconds"], state["stopped"]
        if "cost" in state:  # an older one has none: what is counted from here on then stands for all steps
            self._cost.load_state_dict(state["cost"])
        if (trajectory := state["trajectory"]) is not None:
            self._trajectory = {int(step): loss for step, loss in trajectory.tolist()}
        return True


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _is_finite(state: dict[str, Any]) -> bool:
    """Whether the weights in a step's state are finite: the trunk's and all other tensors at the top level."""
    weights = [value for value in (*state.get("trunk", {}).values(), *state.values()) if isinstance(value, Tensor)]
    return all(bool(value.isfinite().all()) for value in weights)


__all__ = ["TrainOutcome", "Trainer"]
