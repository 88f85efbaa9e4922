"""The schedule of the outer learning rates: a linear warm-up, then a constant or a `torch.optim.lr_scheduler`."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.suggest import did_you_mean

NEEDS_MORE = {
    "ReduceLROnPlateau": "it waits for a metric",
    "LambdaLR": "it takes functions, which a settings file cannot hold",
    "MultiplicativeLR": "it takes functions, which a settings file cannot hold",
    "SequentialLR": "it takes other schedules, which a settings file cannot hold",
    "ChainedScheduler": "it takes other schedules, which a settings file cannot hold",
}
"""Schedules that are rejected, with the reason."""
CYCLED = ("betas", "momentum")
"""Optimiser options that a schedule may change besides the learning rate."""


class Schedule:
    """The factor on the outer learning rates at each step.

    The torch scheduler runs on one learning rate, `train.learning_rate`; the other parameter groups are scaled by the
    same factor. The factor depends only on the number of steps, so that number is the whole state.

    Args:
        settings: schedule, learning rate, warm-up and number of steps are used.
        kind: class of the outer optimiser.
        options: its keyword arguments.

    Raises:
        UsageError: for a schedule that does not exist, cannot be built from settings, or fails before the last step.
    """

    def __init__(self, settings: TrainSettings, kind: type[Optimizer], options: dict[str, Any]) -> None:
        self._settings, self._kind, self._options = settings, kind, options
        self._rehearse()
        self._scheduler = self._start()
        self.count = 0
        """Steps taken."""

    @property
    def factor(self) -> float:
        """Factor on the learning rates at the next step."""
        warmup = self._settings.warmup_steps
        warmth = min(1.0, (self.count + 1) / warmup) if warmup else 1.0
        if self._scheduler is None:
            return warmth
        return warmth * float(self._group()["lr"] / self._settings.learning_rate)

    @property
    def cycled(self) -> dict[str, Any]:
        """Current values of the other optimiser options that the schedule changes (`CYCLED`), by name."""
        return {} if self._scheduler is None else {key: self._group()[key] for key in CYCLED if key in self._group()}

    def advance(self) -> None:
        """Count a step and advance the schedule."""
        self.count += 1
        if self._scheduler is not None and self._first_step() <= self.count < self._settings.num_outer_steps:
            self._scheduler.step()

    def load_count(self, count: int) -> None:
        """Set the schedule to its state after `count` steps."""
        self.count = 0
        self._scheduler = self._start()
        for _ in range(count):
            self.advance()

    def _start(self) -> LRScheduler | None:
        settings, options = self._settings, self._settings.schedule_options
        if settings.schedule == "constant":
            if options:
                raise UsageError(f"train.schedule_options {options} need a schedule, but train.schedule is 'constant'")
            return None
        kind = _schedule_class(settings.schedule)
        check_options("train.schedule_options", kind, options, fixed=("optimizer", "last_epoch"))
        stand_in = self._kind([{"params": [torch.zeros(1, 1)], "lr": settings.learning_rate}], **self._options)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler: LRScheduler = kind(stand_in, **options)
        except Exception as error:  # torch's classes raise errors of many types for invalid options
            raise UsageError(f"train.schedule {settings.schedule!r} with {options} cannot start: {error}") from None
        stand_in.step()  # torch warns if a scheduler steps before its optimiser
        return scheduler

    def _rehearse(self) -> None:
        """Run the whole schedule once, so that a fault shows now and not after hours of training."""
        scheduler, settings = self._start(), self._settings
        if scheduler is None:
            return
        for step in range(self._first_step(), settings.num_outer_steps + 1):
            rate = scheduler.optimizer.param_groups[0]["lr"]
            if not (math.isfinite(rate) and rate >= 0):
                raise UsageError(f"train.schedule {settings.schedule!r} gives a learning rate of {rate} at step {step}")
            if step == settings.num_outer_steps:
                return
            try:
                scheduler.step()
            except Exception as error:  # as above
                raise UsageError(
                    f"train.schedule {settings.schedule!r} with {settings.schedule_options} fails after step {step} of "
                    f"{settings.num_outer_steps}: {' '.join(str(error).split())}"
                ) from None

    def _first_step(self) -> int:
        """The step (from 1) at which the schedule starts, after the warm-up."""
        return max(1, self._settings.warmup_steps)

    def _group(self) -> dict[str, Any]:
        assert self._scheduler is not None
        group: dict[str, Any] = self._scheduler.optimizer.param_groups[0]
        return group


def _schedule_class(name: str) -> type[LRScheduler]:
    if name in NEEDS_MORE:
        raise UsageError(f"train.schedule {name!r} cannot be used: {NEEDS_MORE[name]}; choose another, or 'constant'")
    known = classes_of(lr_scheduler, LRScheduler, without=(*NEEDS_MORE, "LRScheduler"))
    if name not in known:
        raise UsageError(unknown("train.schedule", name, "torch.optim.lr_scheduler", ["constant", *known]))
    return known[name]


def classes_of(module: Any, base: type, without: Iterable[str]) -> dict[str, type]:
    """Public classes of a module that derive from `base`, by name."""
    found = {name: value for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)}
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in without}


def unknown(setting: str, name: str, module: str, known: Iterable[str]) -> str:
    """The error message for a class name that does not exist or cannot be used."""
    known = sorted(known)
    hint = did_you_mean(name, known, otherwise=f"it has: {', '.join(known)}")
    return f"{setting}: {module} has no {name!r} that can be used here; {hint}"


def check_options(setting: str, kind: type, options: dict[str, Any], *, fixed: tuple[str, ...]) -> None:
    """Check a class's keyword arguments.

    Args:
        setting: name of the setting, for the message.
        kind: the class.
        options: arguments by name.
        fixed: arguments that the caller sets itself; they are rejected in `options`.

    Raises:
        UsageError: for an unknown or a missing argument; the message lists the known ones.
    """
    parameters = inspect.signature(kind).parameters.values()
    taken = [parameter.name for parameter in parameters if parameter.name not in fixed]
    for name in sorted(options.keys() - taken):
        raise UsageError(f"{setting}.{name}: {kind.__name__} takes no such option here; it takes: {', '.join(taken)}")
    missing = [p.name for p in parameters if p.default is p.empty and p.name in taken and p.name not in options]
    if missing:
        raise UsageError(f"{setting} must give {', '.join(missing)}, which {kind.__name__} cannot do without")
