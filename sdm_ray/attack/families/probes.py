"""Families that read what is in the features, without a gradient step: no gradient masking stops them.

They read the pooled features or the mean over tokens of any hidden state, so a collapsed pooler does not stop them.
"""

from __future__ import annotations

from collections.abc import Callable

from sdm_ray.attack.families.base import Attacker, Facts, Family
from sdm_ray.attack.space import Choice, Integer, LogFloat, Point, Space
from sdm_ray.config.attack import AttackSettings


def _layers(facts: Facts) -> Choice:
    return Choice((-1, *range(facts.num_hidden_states)))


def _linear_space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return {"layer": _layers(facts), "amount": LogFloat(1e-4, 1e2)}


def _knn_space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return {"layer": _layers(facts), "amount": Integer(1, min(15, num_examples))}


def _attacker(name: str) -> Callable[[Point, int], Attacker]:
    def attacker(point: Point, num_examples: int) -> Attacker:
        return Attacker(
            family=name,
            num_examples=num_examples,
            trains="probe",
            probe=name,
            layer=point["layer"],
            amount=float(point["amount"]),
        )

    return attacker


LINEAR_PROBE = Family(
    "linear_probe",
    "ridge regression on features in closed form (amount: penalty)",
    _linear_space,
    _attacker("linear_probe"),
)
LOGISTIC_REGRESSION = Family(
    "logistic_regression", "logistic regression on features (amount: penalty)", _linear_space,
    _attacker("logistic_regression"),
)  # fmt: skip
KNN = Family("knn", "nearest neighbours of features (amount: how many)", _knn_space, _attacker("knn"))
