"""Families that fit a classifier to frozen features, so that gradient masking does not stop them.

They use the pooled features or the mean over tokens of any hidden state, so a collapsed pooler does not stop them
either.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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


TOLERANCE = 1e-8
"""Largest element of the gradient at which logistic regression has converged."""


def standardised(owned: Tensor, others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Standardise features with the mean and standard deviation of the attacker's own.

    Args:
        owned: (n, D) features of the attacker's examples.
        others: further features (·, D).
    """
    owned = owned.double()
    mean, deviation = owned.mean(0), owned.std(0, correction=0)
    # Constant features remain constant. The bound is relative, so that small informative features are scaled up too.
    scale = deviation.clamp_min(1e-9 * deviation.max().clamp_min(1e-300))
    return tuple((value.double() - mean) / scale for value in (owned, *others))


def ridge(features: Tensor, labels: Tensor, num_classes: int, penalty: float) -> Callable[[Tensor], Tensor]:
    """Least squares on one-hot labels with an unpenalised intercept, in closed form.

    Args:
        features: (n, D) standardised.
        labels: (n,).
        num_classes: C.
        penalty: regularisation strength; n times this is added to the diagonal.

    Returns:
        Function from features (·, D) to scores (·, C).
    """
    targets = F.one_hot(labels, num_classes).double()
    mean = targets.mean(0)
    count, width = features.shape
    if count < width:  # the dual is smaller
        gram = features @ features.T + penalty * count * torch.eye(count, dtype=torch.float64, device=features.device)
        weights = features.T @ torch.linalg.solve(gram, targets - mean)
    else:
        gram = features.T @ features + penalty * count * torch.eye(width, dtype=torch.float64, device=features.device)
        weights = torch.linalg.solve(gram, features.T @ (targets - mean))
    return lambda values: values @ weights + mean


def logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, penalty: float
) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS with a line search; arguments as in `ridge`."""
    weights = torch.zeros(features.shape[1] + 1, num_classes, dtype=torch.float64, device=features.device)
    weights.requires_grad_()
    inputs = F.pad(features, (0, 1), value=1.0)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=TOLERANCE, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weights, labels) + 0.5 * penalty * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    found = weights.detach()
    return lambda values: F.pad(values, (0, 1), value=1.0) @ found


def nearest_neighbours(
    features: Tensor, labels: Tensor, num_classes: int, num_neighbours: float
) -> Callable[[Tensor], Tensor]:
    """k nearest neighbours, weighted by inverse distance; arguments as in `ridge`, with k in place of the penalty."""
    count = min(int(num_neighbours), len(features))
    votes = F.one_hot(labels, num_classes).double()

    def scores(values: Tensor) -> Tensor:
        distances, indices = torch.cdist(values, features).topk(count, largest=False)
        weights = 1 / distances.clamp_min(1e-9)
        shares = (weights[..., None] * votes[indices]).sum(1) / weights.sum(1, keepdim=True)
        return shares.clamp_min(1e-6).log()

    return scores


PROBES: dict[str, Callable[[Tensor, Tensor, int, float], Callable[[Tensor], Tensor]]] = {
    "linear_probe": ridge,
    "logistic_regression": logistic_regression,
    "knn": nearest_neighbours,
}
"""Probes by name: `probe(features (n, D), labels (n,), C, amount)` returns a function from features to scores."""
