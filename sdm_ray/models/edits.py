"""Weight edits, used by attackers on released weights and as starts of simulated adversaries.

An edit that applies one function to all elements, up to constants computed from the weights, is an affine map of each
parameter. Meta-gradients flow through its factor; its constants (masks, scales, means, random draws) are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.trunk import Trunk

LEAST_SCALE = 1e-6
"""Scales below this fraction of the largest are float32 rounding errors; their factor is that of this bound."""


class Affine(NamedTuple):
    """The edit value -> factor * value + shift of one parameter."""

    factor: Tensor
    """Broadcasts to the parameter's shape."""
    shift: Tensor
    """Broadcasts to the parameter's shape."""


def scale_factors(scales: Tensor, amount: float) -> Tensor:
    """(n,) factors that equalise scales (n,) and preserve their root mean square; ones if all scales are 0."""
    largest = scales.max()
    factors = (scales / largest).clamp_min(LEAST_SCALE).pow(-amount)
    result: Tensor = factors * (scales.square().sum() / (scales * factors).square().sum()).sqrt()
    return torch.where(largest > 0, result, torch.ones_like(scales))


def table_names(trunk: TrunkLike, params: Params) -> list[str]:
    """Names of the token embedding's parameters; if there is none, of the matrices at the lowest depth."""
    if isinstance(trunk, Trunk):
        weight = trunk.hf_model.get_input_embeddings().weight
        return [name for name, value in trunk.named_parameters() if value is weight]
    return [name for name, value in params.items() if value.dim() == 2 and trunk.depth_of(name) == 0]


def gain_names(params: Params) -> list[str]:
    """Names of the norms' gains."""
    return [name for name, value in params.items() if value.dim() < 2 and not name.endswith("bias")]


def magnitude_mask(value: Tensor, share: float) -> Tensor:
    """Mask of a matrix's elements that magnitude pruning keeps (Han et al., arXiv 1506.02626)."""
    magnitudes = value.abs()
    count = min(int(share * value.numel()), value.numel() - 1)
    threshold = magnitudes.flatten().kthvalue(count + 1).values
    return magnitudes >= threshold


def redrawn_names(trunk: TrunkLike, params: Params, count: float) -> list[str]:
    """Names of the parameters of the top `count` blocks; never includes those of the lowest depth."""
    lowest = max(1.0, trunk.num_depths - count)
    return [name for name in params if trunk.depth_of(name) >= lowest]


def root_mean_square(value: Tensor) -> Tensor:
    """0-d root mean square of a tensor's elements."""
    return value.square().mean().sqrt()


def normal_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal tensor of the same shape, drawn on the CPU."""
    return torch.randn(value.shape, generator=generator).to(value)


def rescaling(trunk: TrunkLike, params: Params, amount: float) -> dict[str, Affine]:
    """Centre the token embedding's columns and equalise their sizes; interpolate gains towards 1.

    An amount of 1 does both completely.
    """
    maps = {}
    for name in table_names(trunk, params):
        table = params[name].double()
        mean = table.mean(0)
        factors = scale_factors((table - mean).square().mean(0).sqrt(), amount)
        maps[name] = Affine(factors.to(params[name]), (-mean * factors).to(params[name]))
    for name in gain_names(params):
        ones = torch.ones_like(params[name])
        maps[name] = Affine((1 - amount) * ones, amount * ones)
    return maps


def pruning(params: Params, amount: float) -> dict[str, Affine]:
    """Set a share `amount` of every matrix to zero, by magnitude."""
    matrices = {name: value for name, value in params.items() if value.dim() >= 2}
    return {name: Affine(magnitude_mask(v, amount).to(v), v.new_zeros(())) for name, v in matrices.items()}


def redrawing(trunk: TrunkLike, params: Params, amount: float, fresh: Params) -> dict[str, Affine]:
    """Replace the top `amount` blocks by `fresh`."""
    names = redrawn_names(trunk, params, amount)
    return {name: Affine(params[name].new_zeros(()), fresh[name].to(params[name])) for name in names}


def interpolation(params: Params, amount: float, public: Params) -> dict[str, Affine]:
    """Move by a share `amount` of the difference towards `public`."""
    return {
        name: Affine(value.new_tensor(1 - amount), amount * public[name].to(value)) for name, value in params.items()
    }


def noising(params: Params, amount: float, seed: int) -> dict[str, Affine]:
    """Add Gaussian noise of `amount` times each parameter's root mean square."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Affine(value.new_ones(()), amount * root_mean_square(value) * normal_like(value, generator))
        for name, value in params.items()
    }


Redraw = Callable[[int], Params]
"""Function from a seed to random weights of the architecture."""
