"""A trunk as a pure function of one flat vector of parameters.

Optimiser maths on one long vector costs a handful of kernels whatever the number of layers, which is what an outer
step of a small encoder is bound by.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdm_ray.models.heads import logits
from sdm_ray.types import Batch, Params


class TrunkLike(Protocol):
    """What meta-training needs of a trunk; `sdm_ray.models.trunk.Trunk` is one, and so is any module shaped like it."""

    feature_dim: int

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor: ...

    def named_parameters(self) -> Any: ...

    def digest(self) -> str: ...


class Layout:
    """Names and shapes of parameters, and their places in one flat vector.

    Args:
        params: the parameters, all of one dtype.
    """

    def __init__(self, params: Params) -> None:
        self.names = tuple(params)
        self.shapes = tuple(value.shape for value in params.values())
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.numel = sum(self.sizes)

    def flatten(self, params: Params) -> Tensor:
        """The parameters as one new vector (P,), without gradient history."""
        return torch.cat([params[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, flat: Tensor) -> Params:
        """Named views into a vector (P,); differentiable."""
        pieces = torch.split(flat, self.sizes)
        return {name: piece.view(shape) for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)}


class FlatModel:
    """Features and logits as functions of a flat parameter vector.

    Args:
        trunk: supplies the architecture; its own parameters are never written to.
    """

    def __init__(self, trunk: TrunkLike) -> None:
        assert isinstance(trunk, nn.Module)
        self._trunk: nn.Module = trunk
        self.feature_dim = trunk.feature_dim
        self.layout = Layout(dict(trunk.named_parameters()))

    def initial(self) -> Tensor:
        """The trunk's own parameters as a new vector (P,)."""
        return self.layout.flatten(dict(self._trunk.named_parameters()))

    def features(self, flat: Tensor, batch: Batch) -> Tensor:
        """Features (..., B, D) of a batch (..., B, L) under parameters (P,)."""
        lead = batch.input_ids.shape[:-1]
        ids, mask = batch.input_ids.flatten(0, -2), batch.attention_mask.flatten(0, -2)
        features: Tensor = functional_call(self._trunk, self.layout.unflatten(flat), (ids, mask))
        return features.view(*lead, -1)

    def logits(self, flat: Tensor, head: Tensor, batch: Batch) -> Tensor:
        """Scores (..., B, C) of a batch under trunk parameters (P,) and a head (C, D)."""
        return logits(self.features(flat, batch), head)
