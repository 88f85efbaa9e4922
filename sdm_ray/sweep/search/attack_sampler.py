"""Optuna's TPE as the attacker's sampler: importing this module makes it known as `attack.sampler: tpe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna

from sdm_ray.attack.space import Chance, Choice, Integer, LogFloat, Point, Space

NUM_STARTUP_TRIALS = 10
"""Points that are drawn at random before the sampler learns from scores."""
POINTS_PER_ASK = 4
"""Points that are proposed before any of them is scored."""


class TpeSampler:
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) over an attacker's space.

    Args:
        space: what is searched.
        seed: the same scores give the same points.
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
        """At most `POINTS_PER_ASK` further points; as many as there are start-up trials at first."""
        count = min(num, POINTS_PER_ASK if self._study.trials else NUM_STARTUP_TRIALS)
        self._waiting = [self._study.ask(self._space) for _ in range(count)]
        return [{name: self._value(name, trial.params[name]) for name in self._space} for trial in self._waiting]

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Scores of the points of the last call, in their order; NaN for one that failed."""
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
