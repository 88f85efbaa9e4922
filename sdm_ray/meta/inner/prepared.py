"""A prepared episode: the start of every gradient strategy, and what a strategy returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdm_ray.meta.inner.episode import FROZEN_RATE_FACTOR, Episode, Execution, Start, make_problem, parameter_noise
from sdm_ray.meta.inner.flat_model import FlatModel, Rows
from sdm_ray.meta.inner.kernels import Kernels
from sdm_ray.meta.inner.optim import OptimizerState, make_optimizer, rate_factors
from sdm_ray.meta.inner.problems import Base, Data, TrunkProblem
from sdm_ray.meta.inner.readout import Readout, StackedOutputs
from sdm_ray.meta.inner.rollout import InnerLoop
from sdm_ray.meta.inner.steps import GradientFunction, StepFunctions, StepSchedule, UpdateRule
from sdm_ray.meta.objectives import TERMS


class LoopGradients(NamedTuple):
    """What a gradient strategy returns; sums over the A adversaries."""

    trunk: Tensor
    """(1, P) or (A, P) gradient of the blocking loss, over the embedding rows that the prepared episode has."""
    head: Tensor | None
    """(A, C, D) gradient of each adversary's own loss (of the blocking loss where it adapts to the desired task); None
    where heads are not learned."""
    log_learning_rate: Tensor | None
    """(A,) gradient of the log learning rates, of the same loss; None where they are not learned."""
    outputs: StackedOutputs
    """Of every evaluated step."""
    values: dict[str, Tensor]
    """Blocking terms by name, means over adversaries; detached."""
    final: Tensor
    """(A, N) variables after the last step."""
    final_state: OptimizerState
    """The optimiser's state then, detached."""


class Strategy(Protocol):
    """A way to take meta-gradients of an episode."""

    def __call__(self, episode: PreparedEpisode) -> LoopGradients: ...


class PreparedEpisode:
    """One episode with leaves to differentiate by, restricted to the embedding rows that occur where these are known.

    Args:
        model: the trunk as a function.
        start: where the adversaries start.
        episode: what the adversaries do.
        weights: blocking terms and their weights.
        predictors: (K+1, C, D), where a term reads them.
        execution: how steps are computed.
    """

    def __init__(
        self,
        model: FlatModel,
        start: Start,
        episode: Episode,
        weights: dict[str, float],
        *,
        predictors: Tensor | None = None,
        execution: Execution,
    ) -> None:
        trunk = start.trunk
        if (rows := episode.rows) is not None:
            trunk = model.compress(trunk, rows)
            model, episode = model.restricted(len(rows.tokens)), episode._replace(data=_localised(episode.data, rows))
        self.start = start._replace(
            trunk=trunk.detach().requires_grad_(),
            head=_leaf(start.head),
            log_learning_rate=_leaf(start.log_learning_rate),
        )
        self.episode, self._model, self._execution = episode, model, execution
        self.num_steps = len(episode.data.inner)
        self.problem = make_problem(model, (start.head.shape[1], start.head.shape[2]), episode.adversary)
        self.readout = Readout(weights, episode.data.evaluation, episode.evaluated_steps, predictors)
        base_read = bool(self.readout.reads("harmful_base"))
        self.evaluated = tuple(sorted({*episode.evaluated_steps, 0} if base_read else {*episode.evaluated_steps}))
        gradient_terms = self.readout.reads("inner_gradient")
        assert len(gradient_terms) <= 1, gradient_terms
        self._gradient_term = next(iter(gradient_terms), None) if self.num_steps else None
        self.adapts_to_desired = any(TERMS[name].reads.startswith("desired") for name in weights)

    @property
    def learns(self) -> bool:
        """Whether the adversaries' heads or learning rates are learned."""
        return self.start.head.requires_grad or self.start.log_learning_rate.requires_grad

    @property
    def gradient_function(self) -> GradientFunction | None:
        """The term of inner gradients; None where there is none."""
        return None if self._gradient_term is None else TERMS[self._gradient_term].function

    @property
    def gradient_weight(self) -> float:
        """Weight of the mean over steps of that term, which is a mean over adversaries already."""
        if self._gradient_term is None:
            return 0.0
        sign = -1.0 if TERMS[self._gradient_term].maximised else 1.0
        return sign * self.readout.weights[self._gradient_term] * len(self.start.head)

    def gradient_value(self, values: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The mean over steps of the term of inner gradients, by its name."""
        return {} if self._gradient_term is None else {self._gradient_term: torch.stack(values).mean().detach()}

    def begin(self) -> tuple[Tensor, Base]:
        """Variables (A, N) and base at the start, as functions of the leaves of `start`."""
        trunk, episode = self.start.trunk, self.episode
        if self.start.factor is not None:
            trunk = trunk * self.start.factor
        if self.start.displacement is not None:
            trunk = trunk + self.start.displacement
        if any(episode.noise):
            trunk = trunk + parameter_noise(self._model, trunk, episode.noise, episode.data.seed)
        return self.problem.begin(trunk, self.start.head, episode.data)

    def update_rule(self, log_learning_rate: Tensor) -> UpdateRule:
        """The update rule of the adversaries for log learning rates (A,)."""
        adversary = self.episode.adversary
        factor = FROZEN_RATE_FACTOR if adversary.adaptation == "head" else 1.0
        rates = (log_learning_rate.exp() * factor).unsqueeze(1)
        factors = rate_factors(adversary.schedule, self.num_steps)
        return UpdateRule(make_optimizer(adversary.optimizer), rates, factors, self.episode.gradient_clip)

    def inner_loop(self, base: Base, *, num_differentiated: int, keep_graphs: bool = False) -> InnerLoop:
        """The loop that is rolled out and differentiated backward step by step."""
        schedule = StepSchedule(self.num_steps, self.evaluated, num_differentiated, keep_graphs)
        return InnerLoop(
            self.problem,
            self.episode.data,
            self.update_rule(self.start.log_learning_rate.detach()),
            schedule,
            base,
            gradient_function=self.gradient_function,
            functions=StepFunctions(self._execution.autocast, None if keep_graphs else self._kernels()),
        )

    def stored_bytes(self) -> int:
        """Bytes that keeping the graphs of all steps would take."""
        with torch.enable_grad():
            variables, base = self.begin()
        return self.inner_loop(base, num_differentiated=self.num_steps, keep_graphs=True).graph_bytes(variables)

    def memory_key(self) -> object:
        """A key: episodes with equal keys take the same memory."""
        data = self.episode.data
        shapes = tuple(batch.inputs[0].shape for batch in (*data.inner, *(one.batch for one in data.evaluation)))
        return self.episode.adversary.shape(), tuple(sorted(shapes)), len(self.evaluated)

    def _kernels(self) -> Kernels | None:
        """Compiled step functions, one object for all episodes of a problem; None where they cannot be used."""
        if not self._execution.compiled or self.episode.data.dropout or not isinstance(self.problem, TrunkProblem):
            return None
        key = ("kernels", self.problem)
        if key not in self._model.cache:
            self._model.cache[key] = Kernels(self.problem, self.start.trunk.device)
        kernels: Kernels = self._model.cache[key]
        return kernels


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _localised(data: Data, rows: Rows) -> Data:
    return data._replace(
        inner=tuple(rows.localise(batch) for batch in data.inner),
        evaluation=tuple(one._replace(batch=rows.localise(one.batch)) for one in data.evaluation),
    )
