"""Rescaling: the edits that undo a shrinking of released weights, so that the first steps of an optimiser see it all.

A defence may hide instead of remove: a direction that is made small drowns in the others, and fine-tuning does not
reach it in time. Whoever suspects so divides by the scale again, at the price of a decomposition of each matrix
(arXiv 2602.18868). What was projected out does not come back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdm_ray.attack.families.base import HEAD_RATE_FACTOR, Attacker, Facts, Family, paper_space
from sdm_ray.attack.space import Choice, Point, Space
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.trunk import Trunk

LEAST_SCALE = 1e-6
"""Scales below this share of the largest are rounding errors of float32 and are raised no further than it is."""
EXPONENTS = (1.0, 0.75)
"""How far scales are equalised: 0 leaves them, 1 makes them equal."""
CHAINS = (
    "rescale_embedding",
    "rescale_columns+rescale_gains",
    "rescale_gains+rescale_neurons+rescale_weights+rescale_embedding",
)
"""The tensors that are rescaled, in order."""


def rescale_columns(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Columns of the token embedding with mean 0 and, at an amount of 1, equal deviations."""

    def equal(table: Tensor) -> Tensor:
        centred = table - table.mean(0)
        return centred * _factors(centred.square().mean(0).sqrt(), amount)

    return _changed(params, table_names(trunk, params), equal)


def rescale_embedding(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """The token embedding, its rows' mean taken out, with singular values that are equal at an amount of 1."""
    return _changed(params, table_names(trunk, params), lambda table: _flattened(table - table.mean(0), amount))


def rescale_weights(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """All other matrices with singular values that are equal at an amount of 1."""
    return _changed(params, _matrices(trunk, params), lambda weight: _flattened(weight, amount))


def rescale_gains(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Gains of norms moved to one by a share."""
    names = [name for name, value in params.items() if value.dim() < 2 and not name.endswith("bias")]
    return _changed(params, names, lambda gain: torch.lerp(gain, torch.ones_like(gain), amount))


def rescale_neurons(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Rows of matrices (with their biases), then columns, with norms that are equal at an amount of 1.

    A row holds a neuron's input weights, a column its output weights. Scaling both preserves the function for ReLU
    alone; with these encoders' activations the function changes, and training goes on from there.
    """
    names, changed = _matrices(trunk, params), dict(params)
    for name in names:
        weight = params[name].double()
        rows = _factors(weight.square().mean(1).sqrt(), amount)
        weight = weight * rows[:, None]
        changed[name] = (weight * _factors(weight.square().mean(0).sqrt(), amount)).to(params[name])
        bias = name.removesuffix("weight") + "bias"
        if bias in params and params[bias].shape == rows.shape:
            changed[bias] = (params[bias] * rows).to(params[bias])
    return changed


RESCALINGS = {
    "rescale_columns": rescale_columns,
    "rescale_embedding": rescale_embedding,
    "rescale_weights": rescale_weights,
    "rescale_gains": rescale_gains,
    "rescale_neurons": rescale_neurons,
}
"""By the name of the edit: functions of trunk, weights and amount; nothing is drawn."""


def table_names(trunk: TrunkLike, params: Params) -> list[str]:
    """Names of the token embedding, or of the matrices at the lowest depth where there is none."""
    if isinstance(trunk, Trunk):
        weight = trunk.hf_model.get_input_embeddings().weight
        return [name for name, value in trunk.named_parameters() if value is weight]
    return [name for name, value in params.items() if value.dim() == 2 and trunk.depth_of(name) == 0]


def _matrices(trunk: TrunkLike, params: Params) -> list[str]:
    tables = set(table_names(trunk, params))
    return [name for name, value in params.items() if value.dim() == 2 and name not in tables]


def _changed(params: Params, names: list[str], change: Callable[[Tensor], Tensor]) -> Params:
    return params | {name: change(params[name].double()).to(params[name]) for name in names}


def _factors(scales: Tensor, amount: float) -> Tensor:
    """What makes scales (n,) more equal and keeps their root mean square; 1 where there is none."""
    largest = scales.max()
    if not largest > 0:
        return torch.ones_like(scales)
    factors = (scales / largest).clamp_min(LEAST_SCALE).pow(-amount)
    result: Tensor = factors * (scales.square().sum() / (scales * factors).square().sum()).sqrt()
    return result


def _flattened(weight: Tensor, amount: float) -> Tensor:
    """A matrix (float64) with singular values s ** (1 - amount), up to one factor that keeps its Frobenius norm."""
    gram = weight.T @ weight if len(weight) >= weight.shape[1] else weight @ weight.T
    squares, vectors = torch.linalg.eigh(gram)
    scaling: Tensor = vectors * _factors(squares.clamp_min(0).sqrt(), amount) @ vectors.T
    return weight @ scaling if len(weight) >= weight.shape[1] else scaling @ weight


def _space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return paper_space(settings, num_examples) | {"edit": Choice(CHAINS), "amount": Choice(EXPONENTS)}


def _attacker(point: Point, num_examples: int) -> Attacker:
    return Attacker(
        family="rescale",
        num_examples=num_examples,
        learning_rate=point["learning_rate"] * (HEAD_RATE_FACTOR if point["frozen"] else 1.0),
        num_steps=point["num_steps"],
        batch_size=point["batch_size"],
        trains="head" if point["frozen"] else "full",
        edit=point["edit"],
        amount=point["amount"],
    )


RESCALE = Family(
    "rescale",
    "scales within embedding, matrices and norms made equal (amount: exponent), then Adam as `fine_tune`",
    _space,
    _attacker,
)
