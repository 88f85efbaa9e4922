"""Rescaling: weight edits that equalise scales, so that fine-tuning can use directions that a defence has shrunk.

A defence may shrink a direction instead of removing it. Fine-tuning then does not amplify it within few steps. An
attacker can undo this by equalising the singular values, at the cost of one decomposition per matrix (arXiv
2602.18868). A direction that was projected out cannot be restored in this way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdm_ray.attack.families.base import HEAD_RATE_FACTOR, Attacker, Facts, Family, paper_space
from sdm_ray.attack.space import Choice, Point, Space
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.types import Params
from sdm_ray.models.edits import LEAST_SCALE, gain_names, scale_factors, table_names
from sdm_ray.models.interface import TrunkLike

EXPONENTS = (1.0, 0.75)
"""Exponents: 0 leaves the scales unchanged, 1 makes them equal."""
CHAINS = (
    "rescale_embedding",
    "rescale_columns+rescale_gains",
    "rescale_gains+rescale_neurons+rescale_weights+rescale_embedding",
)
"""Sequences of rescalings that are searched."""


def rescale_columns(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Centre the columns of the token embedding and equalise their standard deviations (equal at an amount of 1)."""

    def equal(table: Tensor) -> Tensor:
        centred = table - table.mean(0)
        return centred * scale_factors(centred.square().mean(0).sqrt(), amount)

    return _changed(params, table_names(trunk, params), equal)


def rescale_embedding(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Subtract the mean row from the token embedding and equalise its singular values (equal at an amount of 1)."""
    return _changed(params, table_names(trunk, params), lambda table: _flattened(table - table.mean(0), amount))


def rescale_weights(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Equalise the singular values of all other matrices (equal at an amount of 1)."""
    return _changed(params, _matrices(trunk, params), lambda weight: _flattened(weight, amount))


def rescale_gains(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Interpolate the gains of norms towards 1 (all 1 at an amount of 1)."""
    return _changed(params, gain_names(params), lambda gain: torch.lerp(gain, torch.ones_like(gain), amount))


def rescale_neurons(trunk: TrunkLike, params: Params, amount: float) -> Params:
    """Equalise the norms of matrices' rows (with their biases), then of columns (equal at an amount of 1).

    A row contains a neuron's input weights, a column its output weights. Scaling both preserves the function only for
    ReLU. With the activations of these encoders the function changes, and training continues from there.
    """
    names, changed = _matrices(trunk, params), dict(params)
    for name in names:
        weight = params[name].double()
        rows = scale_factors(weight.square().mean(1).sqrt(), amount)
        weight = weight * rows[:, None]
        changed[name] = (weight * scale_factors(weight.square().mean(0).sqrt(), amount)).to(params[name])
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
"""Deterministic edits by name: functions of trunk, weights and amount."""


def _matrices(trunk: TrunkLike, params: Params) -> list[str]:
    tables = set(table_names(trunk, params))
    return [name for name, value in params.items() if value.dim() == 2 and name not in tables]


def _changed(params: Params, names: list[str], change: Callable[[Tensor], Tensor]) -> Params:
    return params | {name: change(params[name].double()).to(params[name]) for name in names}


def _flattened(weight: Tensor, amount: float) -> Tensor:
    """Change a float64 matrix's singular values s to s ** (1 - amount), times a factor that preserves its Frobenius
    norm."""
    gram = weight.T @ weight if len(weight) >= weight.shape[1] else weight @ weight.T
    squares, vectors = torch.linalg.eigh(gram)
    scaling: Tensor = vectors * scale_factors(squares.clamp_min(0).sqrt(), amount) @ vectors.T
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

__all__ = ["CHAINS", "EXPONENTS", "LEAST_SCALE", "RESCALE", "RESCALINGS", "table_names"]
