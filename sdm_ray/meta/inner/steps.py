"""What the steps of an inner loop are: their update rule, their schedule, and how their functions are computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from torch import Tensor

from sdm_ray.meta.inner.kernels import Kernels
from sdm_ray.meta.inner.optim import InnerOptimizer

GradientFunction = Callable[[Tensor], Tensor]
"""A scalar function of inner gradients (A, N)."""


class UpdateRule(NamedTuple):
    """The update of A adversaries that share optimiser and schedule."""

    optimizer: InnerOptimizer
    learning_rates: Tensor
    """(A, 1)."""
    factors: tuple[float, ...]
    """(K,) factor of the learning rate at each step."""
    gradient_clip: float
    """Norm that each adversary's gradient is clipped to."""

    def rate_at(self, step: int) -> Tensor:
        """(A, 1) learning rates of a step."""
        return self.learning_rates * self.factors[step]


class StepSchedule(NamedTuple):
    """How many steps are taken, and which of them are evaluated and differentiated."""

    num_steps: int
    """K."""
    evaluated: tuple[int, ...]
    """Steps (0 is before the first, K after the last) at which the evaluation batches are run; sorted."""
    num_differentiated: int
    """Number of last updates that meta-gradients pass through."""
    keep_graphs: bool
    """Keep the graphs of differentiated steps. Those of evaluations cost more memory than they save time."""


class StepFunctions(NamedTuple):
    """How the functions of a step are computed."""

    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    """Context of evaluations, and of steps that are not differentiated."""
    kernels: Kernels | None = None
    """Compiled step functions, for schedules that keep no graphs; None computes eagerly."""
