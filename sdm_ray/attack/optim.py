"""Optimisers over a stack of independent attackers, as init/update pairs that write in place.

Every tensor has a leading axis S (attackers), so that slices along it are views: a stack shrinks for free when its
attackers finish. These are written apart from the differentiable optimisers of meta-training on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.types import Params

State = dict[str, Params]
"""Moments by name, each a dictionary like the parameters."""


class StackedOptimizer(NamedTuple):
    """An optimiser as a pair of functions."""

    init: Callable[[Params], State]
    """State of an optimiser that has not stepped."""
    update_: Callable[[Params, State, Mapping[str, Tensor], Tensor, int], None]
    """`(params, state, grads, learning_rates (S,), step from 1)`; overwrites `params` and `state`."""


def narrow(tensors: Params, size: int) -> Params:
    """Views of the first `size` attackers."""
    return {name: value[:size] for name, value in tensors.items()}


def narrow_state(state: State, size: int) -> State:
    """Views of the optimiser state of the first `size` attackers."""
    return {name: narrow(moments, size) for name, moments in state.items()}


BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants, the defaults of `torch.optim.Adam`."""


def adam_init(params: Params) -> State:
    """Zero first and second moments."""
    return {moment: {name: torch.zeros_like(value) for name, value in params.items()} for moment in ("first", "second")}


@torch.no_grad()
def adam_update_(params: Params, state: State, grads: Mapping[str, Tensor], learning_rates: Tensor, step: int) -> None:
    """One step of Adam (Kingma and Ba, arXiv 1412.6980), in the arithmetic of `torch.optim.Adam`.

    Args:
        params: (S, ...) each.
        state: moments, (S, ...) each.
        grads: (S, ...) each.
        learning_rates: (S,), one for each attacker.
        step: number of this step, from 1.
    """
    rate_scale = -1.0 / (1.0 - BETA1**step)
    root_correction = math.sqrt(1.0 - BETA2**step)
    for name, value in params.items():
        grad, first, second = grads[name], state["first"][name], state["second"][name]
        first.lerp_(grad, 1.0 - BETA1)
        second.mul_(BETA2).addcmul_(grad, grad, value=1.0 - BETA2)
        denominator = second.sqrt().div_(root_correction).add_(EPSILON)
        rate = (learning_rates * rate_scale).view(-1, *[1] * (value.dim() - 1))
        value.addcmul_(torch.div(first, denominator, out=denominator), rate)


OPTIMIZERS: dict[str, StackedOptimizer] = {"adam": StackedOptimizer(adam_init, adam_update_)}
"""Stacked optimisers by name."""
