"""Cotangents of an inner loop, and the copies of its variables that the backward pass needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.inner.head_reader import Outputs
from sdm_ray.meta.inner.optim import InnerOptimizer
from sdm_ray.meta.inner.problems import Base

OutputCotangents = Sequence[Sequence[Sequence[Outputs | None]]]
"""M times, for every evaluated step and evaluation batch, the cotangents of its outputs."""


class StartCotangents(NamedTuple):
    """Cotangents of where an inner loop starts, M of them side by side."""

    variables: Tensor
    """(M, A, N)."""
    base: Base
    """Each (M, A, ·)."""
    log_learning_rate: Tensor
    """(M, A)."""


@dataclass
class Accumulator:
    """The M cotangents that the backward pass carries from one step to the step before it."""

    variables: Tensor
    """(M, A, N)."""
    moments: tuple[Tensor, ...]
    """Each (M, A, N), of the optimiser's state."""
    base: list[Tensor]
    """Each (M, A, ·)."""
    log_learning_rate: Tensor
    """(M, A)."""

    @classmethod
    def zeros(cls, point: Tensor, base: Base, optimizer: InnerOptimizer, count: int) -> Accumulator:
        """M = `count` zero cotangents at the end of the loop, for variables (A, N) like `point`."""
        zeros = [value.new_zeros(count, *value.shape) for value in (point, *optimizer.init(point).moments)]
        return cls(
            zeros[0],
            tuple(zeros[1:]),
            [value.new_zeros(count, *value.shape) for value in base],
            point.new_zeros(count, len(point)),
        )

    def add(self, parts: list[Base]) -> None:
        """Add M times the cotangents of variables and base."""
        for index, part in enumerate(parts):
            self.variables[index] += part[0]
            for total, value in zip(self.base, part[1:], strict=True):
                total[index] += value

    def add_displacement(self, cotangents: Tensor, displacement: Tensor) -> None:
        """Add the gradient of the log learning rate for a constant displacement (A, N), from cotangents (M, A, N)."""
        self.log_learning_rate += (cotangents * displacement).sum(-1)


class History:
    """Copies of vectors (A, N) at some steps.

    Args:
        steps: those whose vector is kept.
        like: (A, N) a vector of the same shape, type and device.
    """

    def __init__(self, steps: Iterable[int], like: Tensor) -> None:
        self._slots = {step: slot for slot, step in enumerate(sorted(steps))}
        self._block = torch.empty(len(self._slots), *like.shape, dtype=like.dtype, device=like.device)

    def remember(self, step: int, value: Tensor) -> Tensor:
        """Copy a vector and return the copy; a vector of a step that is not kept is returned as it is."""
        return self.at(step).copy_(value) if step in self._slots else value

    def at(self, step: int) -> Tensor:
        """A view of a step's vector (A, N); `data` gives each view its own autograd version counter."""
        return self._block.data[self._slots[step]]


def vector_jacobian_products(pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Tensor], *, retain: bool) -> Base:
    """Sum of the products of outputs with their cotangents, one for each input; zero for an unused input.

    Args:
        pairs: outputs and their cotangents.
        inputs: tensors to differentiate with respect to.
        retain: keep the graph for another call.
    """
    if not pairs:
        return tuple(torch.zeros_like(value) for value in inputs)
    outputs, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=retain, materialize_grads=True)
    return tuple(value.detach() for value in found)
