"""The trainer: steps, a log that is read from the device once an interval, checkpoints, exact resume."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.data.device import DeviceData
from sdm_ray.meta.checkpoint import load_checkpoint, save_checkpoint
from sdm_ray.meta.functional import TrunkLike
from sdm_ray.meta.generators import Generators
from sdm_ray.meta.linear import LinearStep
from sdm_ray.meta.log import MetricLog
from sdm_ray.meta.outer import OuterStep
from sdm_ray.types import Params, Progress

GENERATORS = ("desired", "harmful", "adversary", "pool", "heads")


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """A trained model."""

    params: Params
    """The trunk's parameters, on the data's device."""
    desired_head: Tensor
    """(C, D)."""
    log: list[dict[str, float]]
    """One row an interval: `train/step` and the interval's means. It does not depend on interruptions."""
    seconds: float
    """Wall time of the training loop, interruptions excluded."""


class Step(Protocol):
    """What the trainer drives: `OuterStep` or `LinearStep`."""

    metric_names: tuple[str, ...]

    @property
    def desired_head(self) -> Tensor: ...

    def step(self) -> Tensor: ...

    def describe_draw(self) -> str: ...

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

    Raises:
        UsageError: when a few-shot subset is larger than the meta-training split.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        trunk: TrunkLike,
        data: DeviceData,
        seed: int,
        checkpoint_dir: Path | None = None,
    ) -> None:
        self._settings, self._checkpoint_dir, self._device = settings, checkpoint_dir, data.device
        generators = Generators(seed, GENERATORS)
        self._step: Step
        if settings.method in ("pretrained", "random"):
            self._step = LinearStep(settings, trunk=trunk, data=data, generators=generators)
        else:
            self._step = OuterStep(settings, trunk=trunk, data=data, generators=generators)
        self._log = MetricLog(self._step.metric_names, settings.log_every_steps, data.device)
        self._identity = {
            "train": settings.model_dump(mode="json"),
            "data": data.digest,
            "encoder": trunk.digest(),
            "seed": seed,
        }
        self._done = 0
        self._seconds = 0.0

    def iterate(self) -> Generator[Progress, None, TrainOutcome]:
        """Train, yielding a `Progress` every log interval, after any checkpoint due at that step.

        Where `checkpoint_dir` holds a checkpoint of the same run, training goes on from it and ends with the same
        parameters and log, bit for bit (CPU, same number of threads).

        Raises:
            UsageError: when the checkpoint there is of another run.
            RunError: when a metric is no longer finite (the last good checkpoint is kept), or a checkpoint cannot be
                read or written.
        """
        settings, total = self._settings, self._settings.num_outer_steps
        self._resume()
        start, earlier, since = time.perf_counter(), self._seconds, self._done
        while self._done < total:
            values = self._step.step()
            self._done += 1
            self._log.add(self._done, values, self._step.describe_draw())
            last = self._done == total
            row = self._log.close_row(self._done) if last or self._done % settings.log_every_steps == 0 else None
            if last or self._done % settings.checkpoint_every_steps == 0:
                self._seconds = earlier + time.perf_counter() - start
                self._save()
            if row is not None:
                elapsed = time.perf_counter() - start
                speed = {"train/steps_per_second": (self._done - since) / max(elapsed, 1e-9)}
                yield Progress("train", self._done, total, row | speed)
        return TrainOutcome(
            params=self._step.params(),
            desired_head=self._step.desired_head.detach().clone(),
            log=self._log.rows,
            seconds=self._seconds,
        )

    def _save(self) -> None:
        if self._checkpoint_dir is None:
            return
        self._log.check()
        state = {"step": self._step.state_dict(), "log": self._log.state_dict(), "seconds": self._seconds}
        save_checkpoint(self._checkpoint_dir, self._done, self._identity, state)

    def _resume(self) -> None:
        if self._checkpoint_dir is None:
            return
        found = load_checkpoint(self._checkpoint_dir, self._identity, self._device)
        if found is not None:
            self._done, state = found
            self._step.load_state_dict(state["step"])
            self._log.load_state_dict(state["log"])
            self._seconds = state["seconds"]


__all__ = ["TrainOutcome", "Trainer"]
