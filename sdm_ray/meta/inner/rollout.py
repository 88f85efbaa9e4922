"""An inner loop that is rolled out once and differentiated backward, one step at a time.

Forward, every adversary takes its K steps and only vectors are kept: variables and optimiser moments. Backward, the
cotangent of the variables passes each step by the optimiser's adjoint in closed form and one Hessian-vector product
(reverse-mode differentiation of a dynamical system: Maclaurin et al., arXiv 1502.03492; Franceschi et al., arXiv
1703.01785). No more than one step's graph is alive at a time, unless `keep_graphs` keeps that of every differentiated
step instead of computing it again.

Only the last `num_differentiated` updates are differentiated (Shaban et al., arXiv 1810.10667). Those before count as
constant displacements: the cotangent passes them unchanged, and the gradient of the learning rate's logarithm is the
displacement times the cotangent.

Trunk and adversaries minimise different losses of the same rollout, so M cotangents go backward together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.inner.cotangents import (
    Accumulator,
    History,
    OutputCotangents,
    StartCotangents,
    vector_jacobian_products,
)
from sdm_ray.meta.inner.head_reader import Outputs
from sdm_ray.meta.inner.kernels import Kernels
from sdm_ray.meta.inner.memory import saved_bytes
from sdm_ray.meta.inner.optim import OptimizerState, clip_adjoint, clip_by_norm
from sdm_ray.meta.inner.problems import Base, Data, Problem
from sdm_ray.meta.inner.steps import GradientFunction, StepFunctions, StepSchedule, UpdateRule


class Rollout(NamedTuple):
    """What the forward pass of a loop returns."""

    outputs: tuple[tuple[Outputs, ...], ...]
    """Detached, for every evaluated step and evaluation batch."""
    final: Tensor
    """(A, N) variables after the last step."""
    final_state: OptimizerState
    """The optimiser's state after the last step."""
    gradient_values: tuple[Tensor, ...]
    """Values of the function of inner gradients, one a step; empty where there is none."""


class InnerLoop:
    """An inner loop that is rolled out once and then differentiated backward once.

    Args:
        problem: variables and losses.
        data: the episode's texts.
        rule: how the adversaries update their variables.
        schedule: which steps are taken, evaluated and differentiated.
        base: tensors that stay fixed during the loop; their cotangents are computed too.
        gradient_function: a term of every step's gradient before clipping; None where there is none.
        functions: how the functions of a step are computed.
    """

    def __init__(
        self,
        problem: Problem,
        data: Data,
        rule: UpdateRule,
        schedule: StepSchedule,
        base: Base,
        *,
        gradient_function: GradientFunction | None = None,
        functions: StepFunctions | None = None,
    ) -> None:
        functions = functions or StepFunctions()
        assert functions.kernels is None or not schedule.keep_graphs
        self._problem, self._data, self._rule, self._schedule = problem, data, rule, schedule
        self._base = tuple(value.detach().requires_grad_() for value in base)
        self._gradient_function = gradient_function
        self._autocast, self._kernels = functions.autocast, functions.kernels
        self._first_differentiated = schedule.num_steps - schedule.num_differentiated
        self._points: History
        self._moments: tuple[History, ...]
        self._first_update = 0
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        self._evaluations: dict[int, tuple[Tensor, tuple[Outputs, ...]]] = {}

    def roll_out(self, start: Tensor, state: OptimizerState | None = None) -> Rollout:
        """Take all steps and keep what `backward` needs.

        Args:
            start: (A, N) variables.
            state: the optimiser's; None initialises it.
        """
        schedule, point = self._schedule, start.detach()
        state = state or self._rule.optimizer.init(point)
        self._start_histories(point, state)
        outputs, values = [], []
        for step in range(schedule.num_steps + 1):
            kept = self._points.remember(step, point)
            for history, value in zip(self._moments, state.moments, strict=True):
                history.remember(step, value)
            if step in schedule.evaluated:
                outputs.append(self._evaluate(step, kept))
            if step == schedule.num_steps:
                break
            gradient = self._gradient(step, kept)
            if self._gradient_function is not None:
                values.append(self._gradient_function(gradient))
            point, state = self._update(step, gradient, point, state)
        return Rollout(tuple(outputs), point, state, tuple(values))

    def evaluate(self, start: Tensor) -> tuple[list[tuple[Outputs, ...]], Tensor]:
        """Take all steps without keeping anything for a backward pass.

        Args:
            start: (A, N) variables.

        Returns:
            The outputs at every evaluated step, and the variables (A, N) after the last step.
        """
        point, state, outputs = start.detach(), self._rule.optimizer.init(start.detach()), []
        for step in range(self._schedule.num_steps + 1):
            if step in self._schedule.evaluated:
                outputs.append(self._evaluate(step, point))
            if step < self._schedule.num_steps:
                point, state = self._update(step, self._gradient(step, point), point, state)
        return outputs, point

    def backward(self, cotangents: OutputCotangents, gradient_weights: Sequence[float]) -> StartCotangents:
        """Cotangents of the start of the loop.

        Args:
            cotangents: M cotangents of the outputs.
            gradient_weights: M weights of the mean over steps of the function of inner gradients.
        """
        schedule, first = self._schedule, self._first_differentiated
        total = Accumulator.zeros(
            self._points.at(schedule.num_steps), self._base, self._rule.optimizer, len(cotangents)
        )
        positions = {step: position for position, step in enumerate(schedule.evaluated)}
        for step in range(schedule.num_steps, -1, -1):
            if step in positions:
                position = positions[step]
                self._add(total, step, self._backward_outputs(step, [values[position] for values in cotangents]))
            if step == first:
                total.add_displacement(total.variables, self._points.at(step) - self._points.at(0))
            if step > first:
                self._backward_update(total, step - 1, gradient_weights)
            elif step > 0 and any(gradient_weights):
                self._add(total, step - 1, self._backward_gradient_function(step - 1, gradient_weights))
        return StartCotangents(total.variables, tuple(total.base), total.log_learning_rate)

    def graph_bytes(self, start: Tensor) -> int:
        """Bytes that a loop which keeps graphs holds: the measured graph of the first step, and its vectors."""
        if not self._schedule.num_steps:
            return 0
        step = saved_bytes(lambda: self._graph(0, start, create=True), (start, *self._base))
        vectors = (2 + self._rule.optimizer.num_moments) * start.numel() * start.element_size()
        return (step + vectors) * self._schedule.num_differentiated

    def _start_histories(self, point: Tensor, state: OptimizerState) -> None:
        schedule, first, num_steps = self._schedule, self._first_differentiated, self._schedule.num_steps
        every = self._gradient_function is not None
        needed = range(num_steps + 1) if every else {0, *schedule.evaluated, *range(first, num_steps + 1)}
        self._points = History(needed, point)
        self._moments = tuple(History(range(first, num_steps), value) for value in state.moments)
        self._first_update = state.num_updates

    def _evaluate(self, step: int, point: Tensor) -> tuple[Outputs, ...]:
        if self._kernels is not None:
            batches = self._data.evaluation
            with self._autocast():
                return tuple(self._kernels.outputs(point, self._base, one.batch.inputs, one.head) for one in batches)
        keep = len(self._schedule.evaluated) == 1
        leaf = point.detach().requires_grad_(keep)
        with torch.set_grad_enabled(keep), self._autocast():
            outputs = self._problem.outputs(self._base, leaf, self._data)
        if keep:
            self._evaluations[step] = (leaf, outputs)
        return tuple(Outputs(one.features.detach(), one.logits.detach()) for one in outputs)

    def _update(
        self, step: int, gradient: Tensor, point: Tensor, state: OptimizerState
    ) -> tuple[Tensor, OptimizerState]:
        with torch.no_grad():
            clipped = clip_by_norm(gradient, self._rule.gradient_clip)
            return self._rule.optimizer.update(clipped, state, point, self._rule.rate_at(step))

    def _gradient(self, step: int, point: Tensor) -> Tensor:
        """(A, N) gradients of the adversaries' losses, their graph kept where the schedule says so."""
        twice = step >= self._first_differentiated or self._gradient_function is not None
        keep = self._schedule.keep_graphs and twice
        with nullcontext() if twice else self._autocast():
            if self._kernels is not None:
                return self._kernels.gradient(point, self._base, self._data.inner[step])
            leaf, gradient = self._graph(step, point, create=keep)
        if keep:
            self._graphs[step] = (leaf, gradient)
        return gradient.detach()

    def _graph(self, step: int, point: Tensor, *, create: bool) -> tuple[Tensor, Tensor]:
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._problem.inner_loss(self._base, leaf, self._data, step)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=create)
        return leaf, gradient

    def _backward_outputs(self, step: int, cotangents: Sequence[Sequence[Outputs | None]]) -> list[Base]:
        """M times the cotangents of variables and base at an evaluated step."""
        if self._kernels is not None:
            return self._backward_compiled_outputs(self._kernels, step, cotangents)
        leaf, outputs = self._evaluations.pop(step, (None, ()))
        if leaf is None:
            leaf = self._points.at(step).detach().requires_grad_()
            with torch.enable_grad(), self._autocast():
                outputs = self._problem.outputs(self._base, leaf, self._data)
        tensors = [tensor for one in outputs for tensor in one]
        parts = []
        for index, given in enumerate(cotangents):
            values = [tensor for one in given for tensor in (one or (None, None))]
            used = [(tensor, value) for tensor, value in zip(tensors, values, strict=True) if value is not None]
            last = index == len(cotangents) - 1
            parts.append(vector_jacobian_products(used, (leaf, *self._base), retain=not last))
        return parts

    def _backward_compiled_outputs(
        self, kernels: Kernels, step: int, cotangents: Sequence[Sequence[Outputs | None]]
    ) -> list[Base]:
        point = self._points.at(step)
        parts = [vector_jacobian_products([], (point, *self._base), retain=False)] * len(cotangents)
        for position, one in enumerate(self._data.evaluation):
            pair = kernels.stack([values[position] for values in cotangents])
            if pair is None:
                continue
            with self._autocast():
                found = kernels.backward_outputs(point, self._base, one.batch.inputs, one.head, pair)
            parts = [
                tuple(total + value[index] for total, value in zip(part, found, strict=True))
                for index, part in enumerate(parts)
            ]
        return parts

    def _backward_update(self, total: Accumulator, step: int, gradient_weights: Sequence[float]) -> None:
        """Pass one update: the optimiser's adjoint, the clip's, then a Hessian-vector product for each cotangent."""
        point, rule = self._points.at(step), self._rule
        moments = tuple(history.at(step) for history in self._moments)
        state = OptimizerState(self._first_update + step, moments)
        leaf, gradient = self._graph_of(step)
        raw = gradient.detach()
        with torch.no_grad():
            rate = rule.rate_at(step)
            clipped = clip_by_norm(raw, rule.gradient_clip)
            back = rule.optimizer.adjoint(total.variables, total.moments, clipped, state, point, rate)
            vectors = clip_adjoint(back.grads, raw, rule.gradient_clip)
            total.log_learning_rate += back.learning_rate * rate.squeeze(1)
            total.variables, total.moments = back.params, back.moments
        if any(gradient_weights):
            vectors = vectors + self._gradient_cotangents(raw, gradient_weights)
        total.add(self._hessian_products(step, leaf, gradient, vectors))

    def _backward_gradient_function(self, step: int, gradient_weights: Sequence[float]) -> list[Base]:
        """Cotangents from the function of gradients at a step whose update is not differentiated."""
        leaf, gradient = self._graph_of(step)
        vectors = self._gradient_cotangents(gradient.detach(), gradient_weights)
        return self._hessian_products(step, leaf, gradient, vectors)

    def _gradient_cotangents(self, gradient: Tensor, weights: Sequence[float]) -> Tensor:
        """(M, A, N) cotangents of a step's gradient from the function of gradients."""
        assert self._gradient_function is not None
        leaf = gradient.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self._gradient_function(leaf), leaf)
        return torch.stack([found * (weight / self._schedule.num_steps) for weight in weights])

    def _graph_of(self, step: int) -> tuple[Tensor, Tensor]:
        """The leaf and gradient of a step: kept, or computed again."""
        if step in self._graphs:
            return self._graphs.pop(step)
        point = self._points.at(step)
        if self._kernels is not None:
            return point, self._kernels.gradient(point, self._base, self._data.inner[step])
        return self._graph(step, point, create=True)

    def _hessian_products(self, step: int, leaf: Tensor, gradient: Tensor, vectors: Tensor) -> list[Base]:
        """Hessian-vector products of a step with M vectors (A, N)."""
        if self._kernels is not None:
            found = self._kernels.products(leaf, self._base, self._data.inner[step], vectors)
            return [tuple(value[index] for value in found) for index in range(len(vectors))]
        inputs, last = (leaf, *self._base), len(vectors) - 1
        return [
            vector_jacobian_products([(gradient, vector)], inputs, retain=index < last)
            for index, vector in enumerate(vectors)
        ]

    def _add(self, total: Accumulator, step: int, parts: list[Base]) -> None:
        if step < self._first_differentiated:
            cotangents = torch.stack([part[0] for part in parts])
            total.add_displacement(cotangents, self._points.at(step) - self._points.at(0))
        total.add(parts)
