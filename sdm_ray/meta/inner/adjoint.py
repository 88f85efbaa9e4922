"""Meta-gradients by walking an inner loop back one step at a time.

Forwards, every adversary takes its K steps and only vectors are kept: variables and optimiser moments. Backwards, the
cotangent of the variables passes each step by the optimiser's adjoint in closed form and one Hessian-vector product
(reverse-mode differentiation of a dynamical system: Maclaurin et al., arXiv 1502.03492; Franceschi et al., arXiv
1703.01785). Nothing of more than one step's size is alive at a time, so memory is flat in K but for the vectors.

`keep` trades memory for time: the graph of every differentiated step is kept instead of being computed again.

Only the last `num_differentiated` updates are differentiated (Shaban et al., arXiv 1810.10667); those before count as
constant displacements, as all of them do in first-order methods: the cotangent passes them unchanged, and the gradient
of the learning rate's logarithm is the displacement times the cotangent.

Trunk and adversary pull at the same steps in different directions, so M cotangents are walked back side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.inner.kernels import Kernels
from sdm_ray.meta.inner.memory import saved_bytes
from sdm_ray.meta.inner.optim import InnerOptimizer, OptimizerState, clip_adjoint, clip_by_norm
from sdm_ray.meta.inner.problems import Base, Data, Problem, View


class Rule(NamedTuple):
    """How A adversaries that are alike move."""

    optimizer: InnerOptimizer
    learning_rates: Tensor
    """(A, 1)."""
    factors: tuple[float, ...]
    """(K,) what each step's learning rate is multiplied by."""
    gradient_clip: float
    """Norm that each adversary's gradient is clipped to."""

    def rate_at(self, step: int) -> Tensor:
        """(A, 1) learning rates of a step."""
        return self.learning_rates * self.factors[step]


class Course(NamedTuple):
    """Which steps are taken, watched and differentiated."""

    num_steps: int
    """K."""
    watched: tuple[int, ...]
    """Moments (0 is before the first step, K after the last) at which the outer batches are seen; sorted."""
    num_differentiated: int
    """Last updates that meta-gradients pass through exactly."""
    keep: bool
    """Keep the graphs of differentiated steps. Those of watched moments cost more memory than they save time."""


class Flight(NamedTuple):
    """A loop that was flown forwards."""

    views: tuple[tuple[View, ...], ...]
    """Detached, for every watched moment and watch."""
    final: Tensor
    """(A, N) variables after the last step."""
    final_state: OptimizerState
    """The optimiser's state then."""
    gradient_values: tuple[Tensor, ...]
    """Values of the function of inner gradients, one a step; empty where there is none."""


class Adjoint(NamedTuple):
    """Cotangents of an episode's start, M of them side by side."""

    variables: Tensor
    """(M, A, N)."""
    base: Base
    """Each (M, A, ·)."""
    log_learning_rate: Tensor
    """(M, A)."""


GradientFunction = Callable[[Tensor], Tensor]
"""A scalar function of inner gradients (A, N)."""
Cotangents = Sequence[Sequence[Sequence[View | None]]]
"""M times, for every watched moment and watch, the cotangents of its view."""


class Loop:
    """An inner loop that is flown forwards once and walked back once.

    Args:
        problem: variables and losses.
        data: the episode's texts.
        rule: how the adversaries move.
        course: which steps are taken, watched and differentiated.
        base: what the variables act on; meta-gradients with respect to it are taken.
        gradient_function: read off every step's gradient before clipping; None reads nothing.
        watching: context that the outer batches are seen in (autocast).
        stepping: context of the steps that are not differentiated.
        kernels: compiled step functions, for courses that keep nothing; None computes eagerly.
    """

    def __init__(
        self,
        problem: Problem,
        data: Data,
        rule: Rule,
        course: Course,
        base: Base,
        *,
        gradient_function: GradientFunction | None = None,
        watching: Callable[[], AbstractContextManager[object]] = nullcontext,
        stepping: Callable[[], AbstractContextManager[object]] = nullcontext,
        kernels: Kernels | None = None,
    ) -> None:
        assert kernels is None or not course.keep
        self._problem, self._data, self._rule, self._course = problem, data, rule, course
        self._base = tuple(value.detach().requires_grad_() for value in base)
        self._gradient_function, self._watching, self._stepping = gradient_function, watching, stepping
        self._kernels = kernels
        self._first_kept = course.num_steps - course.num_differentiated
        self._points: History
        self._moments: tuple[History, ...]
        self._first_update = 0
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: dict[int, tuple[Tensor, tuple[View, ...]]] = {}

    def fly(self, start: Tensor, state: OptimizerState | None = None) -> Flight:
        """Take all steps.

        Args:
            start: (A, N) variables.
            state: of the optimiser; None is a fresh one.
        """
        course, point = self._course, start.detach()
        state = state or self._rule.optimizer.init(point)
        self._start_histories(point, state)
        views, values = [], []
        for moment in range(course.num_steps + 1):
            kept = self._points.remember(moment, point)
            for history, value in zip(self._moments, state.moments, strict=True):
                history.remember(moment, value)
            if moment in course.watched:
                views.append(self._watch(moment, kept))
            if moment == course.num_steps:
                break
            gradient = self._gradient(moment, kept)
            if self._gradient_function is not None:
                values.append(self._gradient_function(gradient))
            point, state = self._update(moment, gradient, point, state)
        return Flight(tuple(views), point, state, tuple(values))

    def look(self, start: Tensor) -> list[tuple[View, ...]]:
        """Take all steps and keep nothing to walk back over: what is seen at the watched moments.

        Args:
            start: (A, N) variables.
        """
        point, state, views = start.detach(), self._rule.optimizer.init(start.detach()), []
        for moment in range(self._course.num_steps + 1):
            if moment in self._course.watched:
                views.append(self._watch(moment, point))
            if moment < self._course.num_steps:
                point, state = self._update(moment, self._gradient(moment, point), point, state)
        return views

    def walk_back(self, cotangents: Cotangents, gradient_weights: Sequence[float]) -> Adjoint:
        """Cotangents of the start.

        Args:
            cotangents: of what was seen, M times.
            gradient_weights: M weights of the mean over steps of the function of inner gradients.
        """
        course, first_kept = self._course, self._first_kept
        pull = _Pull.at(self._points.at(course.num_steps), self._base, self._rule.optimizer, len(cotangents))
        positions = {moment: position for position, moment in enumerate(course.watched)}
        for moment in range(course.num_steps, -1, -1):
            if moment in positions:
                position = positions[moment]
                self._add(pull, moment, self._pull_views(moment, [values[position] for values in cotangents]))
            if moment == first_kept:
                pull.displace(pull.variables, self._points.at(moment) - self._points.at(0))
            if moment > first_kept:
                self._pull_step(pull, moment - 1, gradient_weights)
            elif moment > 0 and any(gradient_weights):
                self._add(pull, moment - 1, self._pull_gradient_function(moment - 1, gradient_weights))
        return Adjoint(pull.variables, tuple(pull.base), pull.log_learning_rate)

    def graph_bytes(self, start: Tensor) -> int:
        """Bytes that a loop which keeps graphs holds: the graph of the first step, counted, and its vectors."""
        if not self._course.num_steps:
            return 0
        step = saved_bytes(lambda: self._graph(0, start, create=True), (start, *self._base))
        vectors = (2 + self._rule.optimizer.num_moments) * start.numel() * start.element_size()
        return (step + vectors) * self._course.num_differentiated

    def _start_histories(self, point: Tensor, state: OptimizerState) -> None:
        course, first_kept, num_steps = self._course, self._first_kept, self._course.num_steps
        every = self._gradient_function is not None
        needed = range(num_steps + 1) if every else {0, *course.watched, *range(first_kept, num_steps + 1)}
        self._points = History(needed, point)
        self._moments = tuple(History(range(first_kept, num_steps), value) for value in state.moments)
        self._first_update = state.num_updates

    def _watch(self, moment: int, point: Tensor) -> tuple[View, ...]:
        if self._kernels is not None:
            watches = self._data.watches
            with self._watching():
                return tuple(self._kernels.view(point, self._base, watch.batch.inputs, watch.head) for watch in watches)
        keep = len(self._course.watched) == 1
        leaf = point.detach().requires_grad_(keep)
        with torch.set_grad_enabled(keep), self._watching():
            views = self._problem.views(self._base, leaf, self._data)
        if keep:
            self._seen[moment] = (leaf, views)
        return tuple(View(view.features.detach(), view.logits.detach()) for view in views)

    def _update(
        self, step: int, gradient: Tensor, point: Tensor, state: OptimizerState
    ) -> tuple[Tensor, OptimizerState]:
        with torch.no_grad():
            clipped = clip_by_norm(gradient, self._rule.gradient_clip)
            return self._rule.optimizer.update(clipped, state, point, self._rule.rate_at(step))

    def _gradient(self, step: int, point: Tensor) -> Tensor:
        """(A, N) gradients of the adversaries' losses, their graph kept where the course says so."""
        twice = step >= self._first_kept or self._gradient_function is not None
        keep = self._course.keep and twice
        with nullcontext() if twice else self._stepping():
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

    def _pull_views(self, moment: int, cotangents: Sequence[Sequence[View | None]]) -> list[Base]:
        if self._kernels is not None:
            return self._pull_compiled_views(self._kernels, moment, cotangents)
        leaf, views = self._seen.pop(moment, (None, ()))
        if leaf is None:
            leaf = self._points.at(moment).detach().requires_grad_()
            with torch.enable_grad(), self._watching():
                views = self._problem.views(self._base, leaf, self._data)
        outputs = [tensor for view in views for tensor in view]
        parts = []
        for index, shown in enumerate(cotangents):
            pulls = [tensor for view in shown for tensor in (view or (None, None))]
            used = [(output, value) for output, value in zip(outputs, pulls, strict=True) if value is not None]
            parts.append(_products(used, (leaf, *self._base), retain=index < len(cotangents) - 1))
        return parts

    def _pull_compiled_views(
        self, kernels: Kernels, moment: int, cotangents: Sequence[Sequence[View | None]]
    ) -> list[Base]:
        point = self._points.at(moment)
        parts = [_products([], (point, *self._base), retain=False)] * len(cotangents)
        for position, watch in enumerate(self._data.watches):
            pair = kernels.stack([values[position] for values in cotangents])
            if pair is None:
                continue
            with self._watching():
                found = kernels.pull_view(point, self._base, watch.batch.inputs, watch.head, pair)
            parts = [
                tuple(total + value[index] for total, value in zip(part, found, strict=True))
                for index, part in enumerate(parts)
            ]
        return parts

    def _pull_step(self, pull: _Pull, step: int, gradient_weights: Sequence[float]) -> None:
        """One update: the optimiser's adjoint, the clip's, then a Hessian-vector product each."""
        point, rule = self._points.at(step), self._rule
        moments = tuple(history.at(step) for history in self._moments)
        state = OptimizerState(self._first_update + step, moments)
        leaf, gradient = self._graph_of(step)
        raw = gradient.detach()
        with torch.no_grad():
            rate = rule.rate_at(step)
            clipped = clip_by_norm(raw, rule.gradient_clip)
            back = rule.optimizer.adjoint(pull.variables, pull.moments, clipped, state, point, rate)
            pushes = clip_adjoint(back.grads, raw, rule.gradient_clip)
            pull.log_learning_rate += back.learning_rate * rate.squeeze(1)
            pull.variables, pull.moments = back.params, back.moments
        if any(gradient_weights):
            pushes = pushes + self._gradient_pushes(raw, gradient_weights)
        pull.add(self._products_of(step, leaf, gradient, pushes))

    def _pull_gradient_function(self, step: int, gradient_weights: Sequence[float]) -> list[Base]:
        """Its cotangents at a step that is not differentiated otherwise."""
        leaf, gradient = self._graph_of(step)
        return self._products_of(step, leaf, gradient, self._gradient_pushes(gradient.detach(), gradient_weights))

    def _gradient_pushes(self, gradient: Tensor, weights: Sequence[float]) -> Tensor:
        """(M, A, N) cotangents of a step's gradient from the function of gradients."""
        assert self._gradient_function is not None
        leaf = gradient.detach().requires_grad_()
        with torch.enable_grad():
            (push,) = torch.autograd.grad(self._gradient_function(leaf), leaf)
        return torch.stack([push * (weight / self._course.num_steps) for weight in weights])

    def _graph_of(self, step: int) -> tuple[Tensor, Tensor]:
        """The leaf and gradient of a step: kept, or computed again."""
        if step in self._graphs:
            return self._graphs.pop(step)
        point = self._points.at(step)
        if self._kernels is not None:
            return point, self._kernels.gradient(point, self._base, self._data.inner[step])
        return self._graph(step, point, create=True)

    def _products_of(self, step: int, leaf: Tensor, gradient: Tensor, pushes: Tensor) -> list[Base]:
        """Hessian-vector products of a step with M vectors (A, N)."""
        if self._kernels is not None:
            found = self._kernels.products(leaf, self._base, self._data.inner[step], pushes)
            return [tuple(value[index] for value in found) for index in range(len(pushes))]
        inputs = (leaf, *self._base)
        return [
            _products([(gradient, push)], inputs, retain=index < len(pushes) - 1) for index, push in enumerate(pushes)
        ]

    def _add(self, pull: _Pull, moment: int, parts: list[Base]) -> None:
        if moment < self._first_kept:
            pull.displace(torch.stack([part[0] for part in parts]), self._points.at(moment) - self._points.at(0))
        pull.add(parts)


@dataclass
class _Pull:
    """The cotangents that are walked back, M side by side."""

    variables: Tensor
    moments: tuple[Tensor, ...]
    base: list[Tensor]
    log_learning_rate: Tensor

    @classmethod
    def at(cls, point: Tensor, base: Base, optimizer: InnerOptimizer, count: int) -> _Pull:
        """Zero, at the end of the loop."""
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

    def displace(self, cotangents: Tensor, displacement: Tensor) -> None:
        """What cotangents (M, A, N) of constant displacements (A, N) ask of the learning rate."""
        self.log_learning_rate += (cotangents * displacement).sum(-1)


def _products(pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Tensor], *, retain: bool) -> Base:
    """Vector-Jacobian products of outputs with their cotangents; zero where an input does not matter."""
    if not pairs:
        return tuple(torch.zeros_like(value) for value in inputs)
    outputs, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=retain, materialize_grads=True)
    return tuple(value.detach() for value in found)


class History:
    """Copies of vectors (A, N) at some moments.

    Args:
        moments: those that will be remembered.
        like: (A, N) a vector as they will be.
    """

    def __init__(self, moments: Iterable[int], like: Tensor) -> None:
        self._slots = {moment: slot for slot, moment in enumerate(sorted(moments))}
        self._block = torch.empty(len(self._slots), *like.shape, dtype=like.dtype, device=like.device)

    def remember(self, moment: int, value: Tensor) -> Tensor:
        """The copy of a vector that is kept; the vector itself, if its moment is none of those."""
        return self.at(moment).copy_(value) if moment in self._slots else value

    def at(self, moment: int) -> Tensor:
        """The vector (A, N) of a moment, a view; autograd counts the writes to each by themselves, thanks to `data`."""
        return self._block.data[self._slots[moment]]
