"""Inner optimisers as pure init/update pairs on one flat tensor of variables, with their adjoints in closed form.

Each reproduces the trajectory of the `torch.optim` class of the same name with that class's defaults (momentum: 0.9;
AdamW: weight decay 0.01). Shapes: A adversaries of one group (equal `Adversary.shape`) with N variables each, and a
stack of M cotangents.

The gradient mode `unrolled` differentiates `update` twice; the other modes call `adjoint`. A test compares the two.
With N around a million both are bound by memory bandwidth, so temporaries are overwritten in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MOMENTUM = 0.9
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
WEIGHT_DECAY = 0.01
RMSPROP_ALPHA = 0.99
RMSPROP_EPS = 1e-8
WARMUP_SHARE = 0.1
"""Fraction of the inner steps over which every schedule except `constant` warms up."""

Moments = tuple[Tensor, ...]
Rate = Tensor | float
"""A learning rate: a number, or a tensor that broadcasts against (A, N), with or without a graph."""


class OptimizerState(NamedTuple):
    """State of an inner optimiser: the number of updates, and its moments."""

    num_updates: int
    """Number of updates so far."""
    moments: Moments
    """Tensors (A, N): none for sgd, the momentum buffer, the second moment for rmsprop, both moments for adam and
    adamw."""


class StepAdjoint(NamedTuple):
    """Cotangents of an update's inputs."""

    params: Tensor
    """(M, A, N)."""
    grads: Tensor
    """(M, A, N)."""
    moments: Moments
    """Each (M, A, N)."""
    learning_rate: Tensor
    """(M, A)."""


class InnerOptimizer(NamedTuple):
    """An optimiser: its initial state, its update, and the adjoint of the update."""

    name: str
    num_moments: int
    update: Callable[[Tensor, OptimizerState, Tensor, Rate], tuple[Tensor, OptimizerState]]
    """`update(grads, state, params, lr) -> (params, state)`, all (A, N)."""
    adjoint: Callable[[Tensor, Moments, Tensor, OptimizerState, Tensor, Rate], StepAdjoint]
    """`adjoint(cotangent_params, cotangent_moments, grads, state, params, lr)`: cotangents (M, A, N) of the update's
    outputs, then its inputs. The cotangents may be overwritten."""

    def init(self, params: Tensor) -> OptimizerState:
        """The state before the first update of parameters (A, N)."""
        return OptimizerState(0, tuple(torch.zeros_like(params) for _ in range(self.num_moments)))


def safe_sqrt(value: Tensor) -> Tensor:
    """Square root of a value >= 0 whose derivative at 0 is defined as 0.

    A second moment is 0 wherever a parameter never had a gradient (an embedding row that does not occur); the true
    one-sided derivative is infinite there and would turn a meta-gradient into NaN.
    """
    return value.clamp_min(torch.finfo(value.dtype).tiny).sqrt_()


def _double_slope_(value: Tensor, root: Tensor) -> Tensor:
    """Twice the derivative of `safe_sqrt` at `value`, written into `root` (its square root); 0 where it is clamped."""
    return root.reciprocal_().masked_fill_(value < torch.finfo(value.dtype).tiny, 0.0)


def _dot(cotangents: Tensor, values: Tensor) -> Tensor:
    """(M, A) inner products of cotangents (M, A, N) and values (A, N), without an (M, A, N) temporary."""
    return torch.matmul(cotangents.transpose(0, 1), values.unsqueeze(-1)).squeeze(-1).T


def _sgd_update(grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate) -> tuple[Tensor, OptimizerState]:
    return params - lr * grads, OptimizerState(state.num_updates + 1, ())


def _sgd_adjoint(
    params_bar: Tensor, moments_bar: Moments, grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate
) -> StepAdjoint:
    return StepAdjoint(params_bar, params_bar * -lr, (), -_dot(params_bar, grads))


def _momentum_update(grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate) -> tuple[Tensor, OptimizerState]:
    """Heavy-ball momentum (Polyak, 1964)."""
    buffer = torch.add(grads, state.moments[0], alpha=MOMENTUM)
    return params - lr * buffer, OptimizerState(state.num_updates + 1, (buffer,))


def _momentum_adjoint(
    params_bar: Tensor, moments_bar: Moments, grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate
) -> StepAdjoint:
    buffer = torch.add(grads, state.moments[0], alpha=MOMENTUM)
    buffer_bar = moments_bar[0].sub_(params_bar * lr)
    return StepAdjoint(params_bar, buffer_bar, (buffer_bar * MOMENTUM,), -_dot(params_bar, buffer))


def _adam_moments(grads: Tensor, state: OptimizerState) -> Moments:
    beta1, beta2 = ADAM_BETAS
    mean = torch.lerp(state.moments[0], grads, 1 - beta1)
    return mean, (state.moments[1] * beta2).addcmul_(grads, grads, value=1 - beta2)


def _adam_corrections(state: OptimizerState) -> tuple[float, float]:
    """Bias corrections of the first moment and of the square root of the second."""
    count = state.num_updates + 1
    return 1 - ADAM_BETAS[0] ** count, math.sqrt(1 - ADAM_BETAS[1] ** count)


def _adam_update(grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate) -> tuple[Tensor, OptimizerState]:
    """Kingma and Ba, arXiv 1412.6980, in the order of operations of `torch.optim.Adam`."""
    correction, root_correction = _adam_corrections(state)
    mean, square = _adam_moments(grads, state)
    denominator = (safe_sqrt(square) / root_correction).add_(ADAM_EPS)
    moved = params - (mean / denominator).mul_(lr / correction)
    return moved, OptimizerState(state.num_updates + 1, (mean, square))


def _adam_adjoint(
    params_bar: Tensor, moments_bar: Moments, grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate
) -> StepAdjoint:
    beta1, beta2 = ADAM_BETAS
    correction, root_correction = _adam_corrections(state)
    mean, square = _adam_moments(grads, state)
    root = safe_sqrt(square)
    # The step is size * mean * inverse. Factors without a cotangent are computed once for all M.
    size = lr * (root_correction / correction)
    inverse = (root + ADAM_EPS * root_correction).reciprocal_()
    shape = mean.mul_(inverse)
    rate_bar = _dot(params_bar, shape).mul_(-root_correction / correction)
    double_slope = _double_slope_(square, root).mul_(shape).mul_(inverse.mul_(size))
    mean_bar = moments_bar[0].addcmul_(params_bar, inverse, value=-1)
    square_bar = moments_bar[1].addcmul_(params_bar, double_slope, value=0.5)
    grads_bar = (mean_bar * (1 - beta1)).addcmul_(square_bar, grads, value=2 * (1 - beta2))
    return StepAdjoint(params_bar, grads_bar, (mean_bar.mul_(beta1), square_bar.mul_(beta2)), rate_bar)


def _adamw_update(grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate) -> tuple[Tensor, OptimizerState]:
    """Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), as `torch.optim.AdamW`."""
    return _adam_update(grads, state, params * (1 - lr * WEIGHT_DECAY), lr)


def _adamw_adjoint(
    params_bar: Tensor, moments_bar: Moments, grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate
) -> StepAdjoint:
    decay_bar = _dot(params_bar, params).mul_(-WEIGHT_DECAY)
    inner = _adam_adjoint(params_bar, moments_bar, grads, state, params, lr)
    decayed = params_bar.mul_(1 - lr * WEIGHT_DECAY)
    return inner._replace(params=decayed, learning_rate=inner.learning_rate + decay_bar)


def _rmsprop_square(grads: Tensor, state: OptimizerState) -> Tensor:
    return (state.moments[0] * RMSPROP_ALPHA).addcmul_(grads, grads, value=1 - RMSPROP_ALPHA)


def _rmsprop_update(grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate) -> tuple[Tensor, OptimizerState]:
    """Tieleman and Hinton, lecture 6.5 of *Neural Networks for Machine Learning* (2012), as `torch.optim.RMSprop`."""
    square = _rmsprop_square(grads, state)
    moved = params - (grads / (safe_sqrt(square) + RMSPROP_EPS)).mul_(lr)
    return moved, OptimizerState(state.num_updates + 1, (square,))


def _rmsprop_adjoint(
    params_bar: Tensor, moments_bar: Moments, grads: Tensor, state: OptimizerState, params: Tensor, lr: Rate
) -> StepAdjoint:
    square = _rmsprop_square(grads, state)
    root = safe_sqrt(square)
    inverse = (root + RMSPROP_EPS).reciprocal_()
    shape = grads * inverse
    rate_bar = -_dot(params_bar, shape)
    double_slope = _double_slope_(square, root).mul_(shape).mul_(inverse.mul_(lr))
    square_bar = moments_bar[0].addcmul_(params_bar, double_slope, value=0.5)
    grads_bar = (params_bar * inverse).neg_().addcmul_(square_bar, grads, value=2 * (1 - RMSPROP_ALPHA))
    return StepAdjoint(params_bar, grads_bar, (square_bar.mul_(RMSPROP_ALPHA),), rate_bar)


_OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        InnerOptimizer("sgd", 0, _sgd_update, _sgd_adjoint),
        InnerOptimizer("momentum", 1, _momentum_update, _momentum_adjoint),
        InnerOptimizer("adam", 2, _adam_update, _adam_adjoint),
        InnerOptimizer("adamw", 2, _adamw_update, _adamw_adjoint),
        InnerOptimizer("rmsprop", 1, _rmsprop_update, _rmsprop_adjoint),
    )
}


def make_optimizer(name: str) -> InnerOptimizer:
    """The optimiser called `sgd`, `momentum`, `adam`, `adamw` or `rmsprop`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _OPTIMIZERS:
        raise ValueError(f"unknown inner optimiser {name!r}; known: {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[name]


def clip_by_norm(grads: Tensor, max_norm: float) -> Tensor:
    """Scale each adversary's gradient (A, N) to a norm of at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`.

    Differentiable; the derivative of the norm at 0 is 0. There is no branch on the norm's value.
    """
    norms = torch.linalg.vector_norm(grads, dim=-1, keepdim=True)
    clipped: Tensor = grads * (max_norm / (norms + 1e-6)).clamp(max=1.0)
    return clipped


def clip_adjoint(cotangent: Tensor, grads: Tensor, max_norm: float) -> Tensor:
    """Backward of `clip_by_norm`: cotangents (M, A, N) of its input, from those of its output, for gradients (A, N)."""
    norms = torch.linalg.vector_norm(grads, dim=-1, keepdim=True)
    raw = max_norm / (norms + 1e-6)
    along = _dot(cotangent, grads).unsqueeze(-1)
    slope = torch.where(raw <= 1.0, raw / (norms + 1e-6) / norms.clamp_min(1e-30), 0.0)
    pulled: Tensor = (cotangent * raw.clamp(max=1.0)).addcmul_(along * slope, grads, value=-1)
    return pulled


def rate_factors(schedule: str, num_steps: int) -> tuple[float, ...]:
    """The learning rate's factor at each of K steps.

    `constant`: 1. The others rise linearly to 1 over the first tenth of the steps (at least one step). After that
    `warmup` stays at 1, while `linear` and `cosine` decay and would reach 0 one step after the last.

    Raises:
        ValueError: for an unknown schedule.
    """
    if schedule not in ("constant", "warmup", "linear", "cosine"):
        raise ValueError(f"unknown learning rate schedule {schedule!r}; known: constant, warmup, linear, cosine")
    if schedule == "constant":
        return (1.0,) * num_steps
    rising = max(1, round(WARMUP_SHARE * num_steps))
    falling = num_steps - rising
    factors = [(step + 1) / rising for step in range(min(rising, num_steps))]
    for step in range(1, falling + 1):
        left = 1 - step / (falling + 1)
        factors.append({"warmup": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[schedule])
    return tuple(factors)
