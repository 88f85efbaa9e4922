"""Episodes: simulated adversaries, and the meta-gradients through their inner loops.

Trunk and adversary pull at the same trajectory in different directions: the trunk descends the (calibrated) blocking
loss, the adversary's head and learning rate descend the adversary's own uncalibrated loss. Both are vector-Jacobian
products of one loop; only where the two cotangents differ is it walked back twice.

Modes: `unrolled` is autograd through the whole loop (MLAC, arXiv 2211.14946), the reference. `adjoint` walks the loop
back step by step, and `adjoint_stored` does so with the graphs of all steps kept (see `meta.inner.adjoint`); they
agree with `unrolled`, and with each other to the bit. `truncated` differentiates the last updates only, `first_order`
none (as TAR, arXiv 2408.00761).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from sdm_ray.meta.inner.adjoint import Adjoint, Course, Loop, Rule
from sdm_ray.meta.inner.episode import FROZEN_RATE_FACTOR, Episode, MetaGradients, Start, make_problem, parameter_noise
from sdm_ray.meta.inner.flat_model import FlatModel, Rows
from sdm_ray.meta.inner.kernels import Kernels
from sdm_ray.meta.inner.memory import ModeChooser
from sdm_ray.meta.inner.optim import OptimizerState, clip_by_norm, make_optimizer, rate_factors
from sdm_ray.meta.inner.problems import Base, Data, TrunkProblem, View
from sdm_ray.meta.inner.readout import (
    ASIDE,
    MAIN,
    Question,
    Seen,
    fixed_head_gradient,
    own_loss,
    predictor_gradient,
    read_terms,
)
from sdm_ray.meta.objectives import TERMS, Trajectory


def meta_gradients(
    model: FlatModel,
    start: Start,
    episode: Episode,
    weights: dict[str, float],
    *,
    predictors: Tensor | None = None,
    chooser: ModeChooser | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    compiled: bool = False,
) -> MetaGradients:
    """Simulate A adversaries and take all meta-gradients.

    Args:
        model: the trunk as a function.
        start: leaves; the trunk requires gradients, head and learning rate where they are meta-learned.
        episode: what the adversaries do.
        weights: the terms that are read off it, and their weights.
        predictors: (K+1, C, D), where a term reads them.
        chooser: resolves the mode `auto`, and falls back where memory runs out.
        autocast: context of first derivatives.
        compiled: compile the step functions of modes that keep no graph; `auto` is then `adjoint`. An adversary that
            trains the head alone, or has dropout, is computed eagerly all the same.
    """
    run = _Run(model, start, episode, weights, predictors, autocast, compiled)
    mode = "adjoint" if compiled and episode.mode == "auto" else episode.mode
    found = (chooser or ModeChooser()).run(mode, run.measure, run.gradients, key=run.key())
    if episode.rows is not None:
        found = found._replace(trunk=model.expand(found.trunk, episode.rows))
    return found


def look_on(
    model: FlatModel,
    start: Start,
    episode: Episode,
    *,
    chooser: ModeChooser | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    compiled: bool = False,
) -> Trajectory:
    """Simulate A adversaries and only look on: what is seen of them, adversary after adversary, and no gradient.

    The arguments are those of `meta_gradients`; the episode's mode does not matter.
    """
    run = _Run(model, start, episode, {}, None, autocast, compiled)
    return (chooser or ModeChooser()).run("first_order", run.measure, lambda _: run.look_on())


class _Run:
    """One episode, ready to be flown in any mode, on the embedding rows that occur where it has a plan of them."""

    def __init__(
        self,
        model: FlatModel,
        start: Start,
        episode: Episode,
        weights: dict[str, float],
        predictors: Tensor | None,
        autocast: Callable[[], AbstractContextManager[object]],
        compiled: bool,
    ) -> None:
        trunk = start.trunk
        if (rows := episode.rows) is not None:
            trunk = model.compress(trunk, rows)
            model, episode = model.restricted(len(rows.tokens)), episode._replace(data=_localised(episode.data, rows))
        self._start = start._replace(
            trunk=trunk.detach().requires_grad_(),
            head=_leaf(start.head),
            log_learning_rate=_leaf(start.log_learning_rate),
        )
        self._model, self._episode, self._weights = model, episode, weights
        self._autocast, self._compiled = autocast, compiled
        data, adversary = episode.data, episode.adversary
        self._num_steps = len(data.inner)
        self._problem = make_problem(model, (start.head.shape[1], start.head.shape[2]), adversary)
        self._question = Question(weights, data.watches, episode.moments, predictors)
        base_read = any(TERMS[name].reads == "harmful_base" for name in weights)
        self._watched = tuple(sorted({*episode.moments, 0} if base_read else {*episode.moments}))
        gradient_terms = {name: weights[name] for name in weights if TERMS[name].reads == "inner_gradient"}
        assert len(gradient_terms) <= 1, gradient_terms
        self._gradient_term = next(iter(gradient_terms), None) if self._num_steps else None
        self._desired = any(TERMS[name].reads.startswith("desired") for name in weights)

    def gradients(self, mode: str) -> MetaGradients:
        """Fly the episode in a mode other than `auto`."""
        with torch.enable_grad():
            variables, base = self._begin(mode)
        if mode == "unrolled":
            return self._unrolled(variables, base)
        course = Course(self._num_steps, self._watched, self._num_differentiated(mode), mode == "adjoint_stored")
        loop = self._loop(course, base)
        flight = loop.fly(variables, self._start.state)
        seen = Seen.of(flight.views, self._watched).leaves()
        total, values = read_terms(self._question, seen)
        shown, shares = self._cotangents(seen, total)
        gradient_weights = [self._gradient_weight() if index == 0 else 0.0 for index in range(len(shown))]
        adjoint = loop.walk_back(shown, gradient_weights)
        trunk, head, rate = self._landed(variables, base, adjoint, shares)
        values |= self._gradient_value(flight.gradient_values)
        return self._result(seen, values, flight.final, flight.final_state, trunk, head, rate)

    def look_on(self) -> Trajectory:
        """Fly the episode without anything to walk back over."""
        with torch.no_grad():
            variables, base = self._begin("first_order")
        loop = self._loop(Course(self._num_steps, self._watched, 0, False), base)
        seen = Seen.of(loop.look(variables), self._watched)
        question = self._question
        return seen.trajectory(MAIN, question.watches[MAIN].batch.labels, question.moments)

    def key(self) -> object:
        """What the memory that an episode takes depends on."""
        data = self._episode.data
        shapes = tuple(batch.inputs[0].shape for batch in (*data.inner, *(watch.batch for watch in data.watches)))
        return self._episode.adversary.shape(), tuple(sorted(shapes)), len(self._watched)

    def measure(self) -> int:
        """Bytes that keeping the graphs of all differentiated steps would take."""
        with torch.enable_grad():
            variables, base = self._begin("adjoint_stored")
        course = Course(self._num_steps, self._watched, self._num_steps, True)
        return self._loop(course, base).graph_bytes(variables)

    def _begin(self, mode: str) -> tuple[Tensor, Base]:
        trunk = self._start.trunk
        if self._start.displacement is not None:
            trunk = trunk + self._start.displacement
        if any(self._episode.noise):
            trunk = trunk + parameter_noise(self._model, trunk, self._episode.noise, self._episode.data.seed)
        return self._problem.begin(trunk, self._start.head, self._episode.data)

    def _loop(self, course: Course, base: Base) -> Loop:
        return Loop(
            self._problem,
            self._episode.data,
            self._rule(self._start.log_learning_rate.detach()),
            course,
            base,
            gradient_function=None if self._gradient_term is None else partial(_read_gradient, self._gradient_term),
            watching=self._autocast,
            stepping=self._autocast,
            kernels=None if course.keep else self._kernels(),
        )

    def _kernels(self) -> Kernels | None:
        if not self._compiled or self._episode.data.dropout or not isinstance(self._problem, TrunkProblem):
            return None
        key = ("kernels", self._problem)
        if key not in self._model.cache:
            self._model.cache[key] = Kernels(self._problem, self._start.trunk.device)
        kernels: Kernels = self._model.cache[key]
        return kernels

    def _rule(self, log_learning_rate: Tensor) -> Rule:
        adversary = self._episode.adversary
        factor = FROZEN_RATE_FACTOR if adversary.adaptation == "head" else 1.0
        rates = (log_learning_rate.exp() * factor).unsqueeze(1)
        factors = rate_factors(adversary.schedule, self._num_steps)
        return Rule(make_optimizer(adversary.optimizer), rates, factors, self._episode.gradient_clip)

    def _num_differentiated(self, mode: str) -> int:
        if mode == "first_order":
            return 0
        return min(self._episode.truncation_steps, self._num_steps) if mode == "truncated" else self._num_steps

    def _cotangents(self, seen: Seen, total: Tensor) -> tuple[list[list[list[View | None]]], tuple[float, int]]:
        """What is walked back, and how the adversaries' own gradients follow: a factor and which of them it is of."""
        shown = [seen.pulled(_gradients(total, seen.tensors()))]
        if not self._learned() or self._desired:
            return shown, (1.0, 0)
        if (ratio := self._constant_ratio()) is not None:
            return shown, (1.0 / ratio, 0)
        shown.append(seen.pulled(_gradients(own_loss(self._question, seen), seen.tensors())))
        return shown, (1.0, 1)

    def _learned(self) -> bool:
        return self._start.head.requires_grad or self._start.log_learning_rate.requires_grad

    def _constant_ratio(self) -> float | None:
        """The blocking loss over the adversary's own loss, where the one is a multiple of the other."""
        own = {"harmful_adapted", "harmful_base"} if self._watched == (0,) else {"harmful_adapted"}
        return -sum(self._weights.values()) if set(self._weights) <= own else None

    def _landed(
        self, variables: Tensor, base: Base, adjoint: Adjoint, shares: tuple[float, int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """From cotangents of variables and base to gradients of trunk, head and learning rate."""
        start, (factor, which) = self._start, shares
        outputs = [(value, index) for index, value in enumerate((variables, *base)) if value.requires_grad]

        def pull(index: int, leaf: Tensor, *, retain: bool) -> Tensor:
            cotangents = (adjoint.variables[index], *(value[index] for value in adjoint.base))
            (found,) = torch.autograd.grad(
                [value for value, _ in outputs],
                leaf,
                [cotangents[position] for _, position in outputs],
                retain_graph=retain,
                materialize_grads=True,
            )
            return found

        head = rate = None
        trunk = pull(0, start.trunk, retain=start.head.requires_grad)
        if start.head.requires_grad:
            head = pull(which, start.head, retain=False) * factor
        if start.log_learning_rate.requires_grad and self._num_steps:
            rate = adjoint.log_learning_rate[which] * factor
        return trunk, head, rate

    def _gradient_weight(self) -> float:
        """Of the mean over steps of the term of inner gradients; it is a mean over adversaries already."""
        if self._gradient_term is None:
            return 0.0
        sign = -1.0 if TERMS[self._gradient_term].maximised else 1.0
        return sign * self._weights[self._gradient_term] * len(self._start.head)

    def _gradient_value(self, values: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {} if self._gradient_term is None else {self._gradient_term: torch.stack(values).mean().detach()}

    def _result(
        self,
        seen: Seen,
        values: dict[str, Tensor],
        final: Tensor,
        final_state: OptimizerState,
        trunk: Tensor,
        head: Tensor | None,
        rate: Tensor | None,
    ) -> MetaGradients:
        question = self._question
        predicted = any(TERMS[name].reads == "predicted" for name in self._weights)
        aside = len(question.watches) > ASIDE
        trajectory = seen.trajectory(MAIN, question.watches[MAIN].batch.labels, question.moments)
        return MetaGradients(
            trunk=trunk,
            head=head,
            log_learning_rate=rate,
            predictors=predictor_gradient(question, seen) if predicted else None,
            fixed_head=fixed_head_gradient(question, seen) if aside else None,
            values=values,
            trajectory=trajectory._replace(logits=trajectory.logits.detach(), features=trajectory.features.detach()),
            final=final.detach(),
            final_state=final_state,
        )

    def _unrolled(self, variables: Tensor, base: Base) -> MetaGradients:
        """Autograd through everything."""
        start = self._start
        rule = self._rule(start.log_learning_rate)
        state = start.state or rule.optimizer.init(variables.detach())
        views, values = [], []
        if not variables.requires_grad:
            variables = variables.requires_grad_()
        with torch.enable_grad():
            for moment in range(self._num_steps + 1):
                if moment in self._watched:
                    views.append(self._problem.views(base, variables, self._episode.data))
                if moment == self._num_steps:
                    break
                losses = self._problem.inner_loss(base, variables, self._episode.data, moment)
                (gradient,) = torch.autograd.grad(losses.sum(), variables, create_graph=True)
                if self._gradient_term is not None:
                    values.append(_read_gradient(self._gradient_term, gradient))
                clipped = clip_by_norm(gradient, rule.gradient_clip)
                variables, state = rule.optimizer.update(clipped, state, variables, rule.rate_at(moment))
            seen = Seen.of(views, self._watched)
            total, read = read_terms(self._question, seen)
            if values:
                total = total + self._gradient_weight() * torch.stack(values).mean()
            (trunk,) = torch.autograd.grad(total, start.trunk, retain_graph=True, materialize_grads=True)
            own = total if self._desired else own_loss(self._question, seen)
            head, rate = _learned_gradients(own, start, self._num_steps)
        read |= self._gradient_value(tuple(values))
        detached = OptimizerState(state.num_updates, tuple(value.detach() for value in state.moments))
        return self._result(seen, read, variables, detached, trunk, head, rate)


def _read_gradient(term: str, gradient: Tensor) -> Tensor:
    return TERMS[term].function(gradient)


def _learned_gradients(own: Tensor, start: Start, num_steps: int) -> tuple[Tensor | None, Tensor | None]:
    wanted = {
        "head": start.head if start.head.requires_grad else None,
        "rate": start.log_learning_rate if start.log_learning_rate.requires_grad and num_steps else None,
    }
    leaves = {name: value for name, value in wanted.items() if value is not None}
    if not leaves:
        return None, None
    found = torch.autograd.grad(own, list(leaves.values()), materialize_grads=True)
    by_name = dict(zip(leaves, found, strict=True))
    return by_name.get("head"), by_name.get("rate")


def _gradients(value: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(leaves)
    return list(torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True))


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _localised(data: Data, rows: Rows) -> Data:
    return data._replace(
        inner=tuple(rows.localise(batch) for batch in data.inner),
        watches=tuple(watch._replace(batch=rows.localise(watch.batch)) for watch in data.watches),
    )
