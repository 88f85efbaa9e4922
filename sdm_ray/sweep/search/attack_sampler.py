"""Optuna's TPE as a sampler for attacks, `attack.sampler: tpe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna

from sdm_ray.attack.space import Chance, Choice, Integer, LogFloat, Point, Space

NUM_STARTUP_TRIALS = 10
"""Number of random points before the sampler uses scores."""
POINTS_PER_ASK = 4
"""Maximum number of points per `ask` after the start-up points."""


class TpeSampler:
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) over an attacker's space.

    Args:
        space: dimensions by name.
        seed: random seed; equal seeds and scores give equal points.
    """

    def __init__(self, space: Space, seed: int) -> None:
        sampler = optuna.samplers.TPESampler(
            seed=seed % 2**32, n_startup_trials=NUM_STARTUP_TRIALS, multivariate=True, constant_liar=True,
        )  # fmt: skip
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space = {name: _distribution(dimension) for name, dimension in space.items()}
        self._choices = {name: value.values for name, value in space.items() if isinstance(value, Choice)}
        self._waiting: list[optuna.Trial] = []

    def ask(self, num: int) -> list[Point]:
        """Propose at most `num` points: up to `NUM_STARTUP_TRIALS` in the first call, then up to `POINTS_PER_ASK`."""
        count = min(num, POINTS_PER_ASK if self._study.trials else NUM_STARTUP_TRIALS)
        self._waiting = [self._study.ask(self._space) for _ in range(count)]
        return [{name: self._value(name, trial.params[name]) for name in self._space} for trial in self._waiting]

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Report the scores of the points of the last `ask`, in their order; NaN for a failed point."""
        for trial, score in zip(self._waiting, scores, strict=True):
            if math.isnan(score):
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, score)
        self._waiting = []

    def _value(self, name: str, value: Any) -> Any:
        return self._choices[name][value] if name in self._choices else value


def _distribution(dimension: LogFloat | Integer | Choice | Chance) -> Any:
    if isinstance(dimension, LogFloat):
        return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=True)
    if isinstance(dimension, Integer):
        return optuna.distributions.IntDistribution(dimension.low, dimension.high)
    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
    return optuna.distributions.CategoricalDistribution((False, True))
