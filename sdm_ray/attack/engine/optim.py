"""Optimisers for a stack of independent attackers, as init/update pairs that write in place.

Every tensor has a leading dimension S (attackers). Slices along it are views, so a stack shrinks at no cost when
attackers finish. Each optimiser reproduces the `torch.optim` class of the same name with that class's defaults; `lion`,
which torch does not have, follows Chen et al. (arXiv 2302.06675). They are deliberately separate from the
differentiable optimisers of meta-training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.core.types import Params

State = dict[str, Params]
"""Moments by name, each a dictionary like the parameters."""


class StackedOptimizer(NamedTuple):
    """An optimiser as a pair of functions."""

    init: Callable[[Params], State]
    """The initial state."""
    update_: Callable[[Params, State, Mapping[str, Tensor], Tensor, int], None]
    """`(params, state, grads, learning_rates (S,), step from 1)`; overwrites `params` and `state`."""
    leaves_zero_gradients: bool
    """Whether an element whose gradient was always zero does not change and does not affect the others."""


def narrow(tensors: Params, size: int) -> Params:
    """Views of the first `size` attackers."""
    return {name: value[:size] for name, value in tensors.items()}


def narrow_state(state: State, size: int) -> State:
    """Views of the optimiser state of the first `size` attackers."""
    return {name: narrow(moments, size) for name, moments in state.items()}


BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Constants of Adam and AdamW."""
WEIGHT_DECAY = 0.01
"""Weight decay of AdamW."""
MOMENTUM = 0.9
"""Momentum of stochastic gradient descent."""
RMSPROP_ALPHA, RMSPROP_EPSILON = 0.99, 1e-8
ADADELTA_RHO, ADADELTA_EPSILON = 0.9, 1e-6
ADAFACTOR_DECAY, ADAFACTOR_SCALE = -0.8, 1e-3
LION_BETA1, LION_BETA2 = 0.9, 0.99


def _zeros(*moments: str) -> Callable[[Params], State]:
    def init(params: Params) -> State:
        return {moment: {name: torch.zeros_like(value) for name, value in params.items()} for moment in moments}

    return init


def _spread(rates: Tensor, value: Tensor) -> Tensor:
    """(S,) learning rates as a tensor that broadcasts against (S, ...)."""
    return rates.view(-1, *[1] * (value.dim() - 1))


@torch.no_grad()
def _adam_update_(params: Params, state: State, grads: Mapping[str, Tensor], rates: Tensor, step: int) -> None:
    """Kingma and Ba, arXiv 1412.6980, in the order of operations of `torch.optim.Adam`."""
    scaled = rates * (-1.0 / (1.0 - BETA1**step))
    root_correction = math.sqrt(1.0 - BETA2**step)
    for name, value in params.items():
        grad, first, second = grads[name], state["first"][name], state["second"][name]
        first.lerp_(grad, 1.0 - BETA1)
        second.mul_(BETA2).addcmul_(grad, grad, value=1.0 - BETA2)
        denominator = second.sqrt().div_(root_correction).add_(EPSILON)
        value.addcmul_(torch.div(first, denominator, out=denominator), _spread(scaled, value))


@torch.no_grad()
def _adamw_update_(params: Params, state: State, grads: Mapping[str, Tensor], rates: Tensor, step: int) -> None:
    """Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""
    for value in params.values():
        value.mul_(_spread(1.0 - rates * WEIGHT_DECAY, value))
    _adam_update_(params, state, grads, rates, step)


@torch.no_grad()
def _momentum_update_(params: Params, state: State, grads: Mapping[str, Tensor], rates: Tensor, step: int) -> None:
    """Stochastic gradient descent with heavy-ball momentum."""
    for name, value in params.items():
        buffer = state["buffer"][name].mul_(MOMENTUM).add_(grads[name])
        value.addcmul_(buffer, _spread(-rates, value))


@torch.no_grad()
def _rmsprop_update_(params: Params, state: State, grads: Mapping[str, Tensor], rates: Tensor, step: int) -> None:
    """Tieleman and Hinton, lecture 6.5 of *Neural Networks for Machine Learning* (2012)."""
    for name, value in params.items():
        grad, square = grads[name], state["square"][name]
        square.mul_(RMSPROP_ALPHA).addcmul_(grad, grad, value=1.0 - RMSPROP_ALPHA)
        denominator = square.sqrt().add_(RMSPROP_EPSILON)
        value.addcmul_(torch.div(grad, denominator, out=denominator), _spread(-rates, value))


@torch.no_grad()
def _adadelta_update_(params: Params, state: State, grads: Mapping[str, Tensor], rates: Tensor, step: int) -> None:
    """Zeiler, arXiv 1212.5701."""
    for name, value in params.items():
        grad, square, moved = grads[name], state["square"][name], state["moved"][name]
        square.mul_(ADADELTA_RHO).addcmul_(grad, grad, value=1.0 - ADADELTA_RHO)
        delta = (moved + ADADELTA_EPSILON).sqrt_().div_((square + ADADELTA_EPSILON).sqrt_()).mul_(grad)
        moved.mul_(ADADELTA_RHO).addcmul_(delta, delta, value=1.0 - ADADELTA_RHO)
        value.addcmul_(delta, _spread(-rates, value))


def _adafactor_init(params: Params) -> State:
    """Running means of squared gradients: per row and per column of matrices, per element of vectors."""
    rows, columns = {}, {}
    for name, value in params.items():
        matrix = value.dim() > 2
        rows[name] = torch.zeros_like(value[..., :1] if matrix else value)
        columns[name] = torch.zeros_like(value[..., :1, :] if matrix else value[:, :0])
    return {"rows": rows, "columns": columns}


@torch.no_grad()
def _adafactor_update_(params: Params, state: State, grads: Mapping[str, Tensor], rates: Tensor, step: int) -> None:
    """Shazeer and Stern, arXiv 1804.04235, as `torch.optim.Adafactor`: relative steps, updates clipped to norm 1."""
    weight = step**ADAFACTOR_DECAY
    bounded = rates.clamp(max=1 / math.sqrt(step))
    for name, value in params.items():
        grad, rows, columns = grads[name], state["rows"][name], state["columns"][name]
        smallest = torch.finfo(value.dtype).eps
        if value.dim() > 2:
            rows.lerp_(torch.linalg.vector_norm(grad, dim=-1, keepdim=True).square_().div_(grad.shape[-1]), weight)
            columns.lerp_(torch.linalg.vector_norm(grad, dim=-2, keepdim=True).square_().div_(grad.shape[-2]), weight)
            estimate = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=smallest))
        else:
            estimate = rows.lerp_(grad * grad, weight).clone()
        update = estimate.clamp_(min=smallest * smallest).rsqrt_().mul_(grad)
        scale = _root_mean_square(value).clamp(min=ADAFACTOR_SCALE) * bounded
        value.addcmul_(update, _spread(-scale / _root_mean_square(update).clamp(min=1.0), value))


def _root_mean_square(value: Tensor) -> Tensor:
    """(S,) root mean square of each attacker's tensor."""
    flat = value.flatten(1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norm / math.sqrt(flat.shape[1])


@torch.no_grad()
def _lion_update_(params: Params, state: State, grads: Mapping[str, Tensor], rates: Tensor, step: int) -> None:
    """Steps in the sign of a smoothed gradient: every element changes by the learning rate, however small its
    gradient."""
    for name, value in params.items():
        grad, mean = grads[name], state["mean"][name]
        direction = torch.lerp(mean, grad, 1.0 - LION_BETA1).sign_()
        mean.lerp_(grad, 1.0 - LION_BETA2)
        value.addcmul_(direction, _spread(-rates, value))


OPTIMIZERS: dict[str, StackedOptimizer] = {
    "adam": StackedOptimizer(_zeros("first", "second"), _adam_update_, True),
    "adamw": StackedOptimizer(_zeros("first", "second"), _adamw_update_, False),
    "momentum": StackedOptimizer(_zeros("buffer"), _momentum_update_, True),
    "rmsprop": StackedOptimizer(_zeros("square"), _rmsprop_update_, True),
    "adadelta": StackedOptimizer(_zeros("square", "moved"), _adadelta_update_, True),
    "adafactor": StackedOptimizer(_adafactor_init, _adafactor_update_, False),
    "lion": StackedOptimizer(_zeros("mean"), _lion_update_, True),
}
"""Stacked optimisers by name."""

SCALE_FREE = ("lion", "adadelta", "adafactor")
"""Optimisers whose steps do not scale with the gradient, so that small gradients (gradient masking) do not stop
them."""

WARMUP_SHARE = 0.1
"""Fraction of the steps over which every schedule except `constant` warms up."""


def rate_factors(schedule: str, num_steps: int) -> list[float]:
    """The learning rate's factor at each step.

    `constant`: 1. The others rise linearly to 1 over the first tenth of the steps (at least one step). After that
    `warmup` stays at 1, while `linear` and `cosine` decay and would reach 0 one step after the last.

    Raises:
        ValueError: for an unknown schedule.
    """
    if schedule == "constant":
        return [1.0] * num_steps
    shapes: dict[str, Callable[[float], float]] = {
        "warmup": lambda left: 1.0,
        "linear": lambda left: left,
        "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
    }
    if schedule not in shapes:
        raise ValueError(f"unknown learning rate schedule {schedule!r}; known: constant, {', '.join(shapes)}")
    rising = max(1, round(WARMUP_SHARE * num_steps))
    falling = num_steps - rising
    rise = [(step + 1) / rising for step in range(min(rising, num_steps))]
    return rise + [shapes[schedule](1 - step / (falling + 1)) for step in range(1, falling + 1)]
