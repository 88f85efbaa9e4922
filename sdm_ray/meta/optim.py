"""Inner optimisers as pure init/update pairs that can be differentiated through.

Each follows the trajectory of its namesake in `torch.optim`. Parameters are a tuple of tensors; the states are
NamedTuples. With detached inputs the same functions serve the persistent adversaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]

MOMENTUM = 0.9
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class SgdState(NamedTuple):
    """Gradient descent remembers nothing."""


class MomentumState(NamedTuple):
    """Heavy-ball momentum."""

    buffers: Tensors
    """Running sums of gradients, one for each parameter."""


class AdamState(NamedTuple):
    """Adam's moments."""

    num_updates: int
    """Updates done."""
    means: Tensors
    """First moments, one for each parameter."""
    squares: Tensors
    """Second moments, one for each parameter."""


class InnerOptimizer(NamedTuple):
    """An optimiser: a start and a step."""

    name: str
    init: Callable[[Tensors], Any]
    """`init(params) -> state`."""
    update: Callable[[Tensors, Any, Tensors, Tensor | float], tuple[Tensors, Any]]
    """`update(grads, state, params, lr) -> (params, state)`; the learning rate may be a 0-d tensor with history."""
    state: type
    """Class of the state."""


def safe_sqrt(value: Tensor) -> Tensor:
    """Square root of a value >= 0 whose derivative at 0 is defined as 0.

    Adam's second moment is 0 wherever a parameter never had a gradient (an embedding row that does not occur); the true
    one-sided derivative is infinite there and would turn a meta-gradient into NaN.
    """
    return value.clamp_min(torch.finfo(value.dtype).tiny).sqrt()


def _sgd_update(grads: Tensors, state: SgdState, params: Tensors, lr: Tensor | float) -> tuple[Tensors, SgdState]:
    return tuple(p - lr * g for p, g in zip(params, grads, strict=True)), state


def _momentum_init(params: Tensors) -> MomentumState:
    return MomentumState(tuple(torch.zeros_like(p) for p in params))


def _momentum_update(
    grads: Tensors, state: MomentumState, params: Tensors, lr: Tensor | float
) -> tuple[Tensors, MomentumState]:
    buffers = tuple(torch.add(g, b, alpha=MOMENTUM) for g, b in zip(grads, state.buffers, strict=True))
    return tuple(p - lr * b for p, b in zip(params, buffers, strict=True)), MomentumState(buffers)


def _adam_init(params: Tensors) -> AdamState:
    zeros = tuple(torch.zeros_like(p) for p in params)
    return AdamState(0, zeros, zeros)


def _adam_update(grads: Tensors, state: AdamState, params: Tensors, lr: Tensor | float) -> tuple[Tensors, AdamState]:
    """Kingma and Ba, arXiv 1412.6980, in the order of operations of `torch.optim.Adam`."""
    beta1, beta2 = ADAM_BETAS
    count = state.num_updates + 1
    correction, root = 1 - beta1**count, math.sqrt(1 - beta2**count)
    means = tuple(torch.lerp(m, g, 1 - beta1) for m, g in zip(state.means, grads, strict=True))
    squares = tuple(torch.addcmul(v * beta2, g, g, value=1 - beta2) for v, g in zip(state.squares, grads, strict=True))
    size = lr / correction
    new = tuple(
        p - size * (m / (safe_sqrt(v) / root + ADAM_EPS)) for p, m, v in zip(params, means, squares, strict=True)
    )
    return new, AdamState(count, means, squares)


_OPTIMIZERS = {
    "sgd": InnerOptimizer("sgd", lambda params: SgdState(), _sgd_update, SgdState),
    "momentum": InnerOptimizer("momentum", _momentum_init, _momentum_update, MomentumState),
    "adam": InnerOptimizer("adam", _adam_init, _adam_update, AdamState),
}


def make_optimizer(name: str) -> InnerOptimizer:
    """The optimiser called `sgd`, `momentum` (0.9) or `adam` (0.9, 0.999, 1e-8).

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _OPTIMIZERS:
        raise ValueError(f"unknown inner optimiser {name!r}; known: {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[name]


def clip_by_norm(grads: Tensors, max_norm: float) -> Tensors:
    """Scale gradients so that their joint norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` does.

    Differentiable, with derivative 0 of the norm at 0, and without a branch on its value.
    """
    norms = torch.stack([torch.linalg.vector_norm(g) for g in grads])
    scale = (max_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0)
    return tuple(g * scale for g in grads)
