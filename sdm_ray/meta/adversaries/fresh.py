"""Fresh adversaries: sampled for one outer step, grouped by shape, and rolled out group by group.

On a CPU every adversary is its own group: a batch of four took 1.4 times as long as the four in sequence
(`tests.benchmarks.inner_loop`), because a batch updates the union of their embedding rows and outgrows the caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.types import Task
from sdm_ray.data.interface import TrainingDataset
from sdm_ray.meta.adversaries.distribution import HeadKinds, draw_fresh, whole_number
from sdm_ray.meta.adversaries.few_shot import FewShot, InnerBatches
from sdm_ray.meta.adversaries.starts import Starts
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.episode import Episode, Execution, MetaGradients, Start
from sdm_ray.meta.inner.flat_model import FlatModel, Rows
from sdm_ray.meta.inner.head_reader import head_rows
from sdm_ray.meta.inner.loop import evaluate, meta_gradients
from sdm_ray.meta.inner.problems import Data, EvaluationBatch
from sdm_ray.meta.objectives import Trajectory
from sdm_ray.models.heads import init_head

BATCHING = ("cuda",)
"""Kinds of devices on which several adversaries run as one batch."""


class MetaParameters(NamedTuple):
    """Trunk, head and learning rate that the adversaries of an outer step start from."""

    trunk: Tensor
    """(P,)."""
    head: Tensor
    """(C, D) meta-learned head; for the desired task, the model's own head."""
    log_learning_rate: Tensor
    """0-d; may require gradients."""


class GroupGradients(NamedTuple):
    """Meta-gradients of one group of adversaries: means over all adversaries of the outer step."""

    found: MetaGradients
    share: float
    """The group's share of the adversaries."""
    learned_head: Tensor | None
    """(C, D) mean gradient over those that start from the meta-learned head; None if none does."""
    learned_rate: Tensor | None
    """0-d mean gradient of the logarithm of the meta-learned learning rate; None if none uses it."""
    draw: str
    """Description of the adversaries."""


class Simulator:
    """Samples fresh adversaries and computes their meta-gradients.

    Args:
        settings: the training.
        model: the trunk as a function.
        data: examples on the device.
        task: task that the adversaries train on.
        indices: (N,) host indices of meta-training.
        few_shot: draws the subsets.
        generator: CPU generator of all draws.
        execution: execution options of their episodes.
        starts: samples the weights they start from; None starts all of them from the current weights.
        head_kinds: samples what their heads read; None gives all of them heads on the pooled features.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        model: FlatModel,
        data: TrainingDataset,
        task: Task,
        indices: Tensor,
        few_shot: FewShot,
        generator: torch.Generator,
        execution: Execution,
        starts: Starts | None = None,
        head_kinds: HeadKinds | None = None,
    ) -> None:
        self._settings, self._model, self._data, self._task = settings, model, data, task
        self._generator, self._execution, self._starts = generator, execution, starts
        self._head_kinds = head_kinds
        self._inner = InnerBatches(indices, few_shot, settings.adversary, generator)

    def draw(self, step: int, *, takes_steps: bool = True) -> list[Adversary]:
        """Sample the adversaries of an outer step; if `takes_steps` is false, a single one, the un-adapted model."""
        adversary, depths = self._settings.adversary, self._model.trunk.num_depths
        count = adversary.num_adversaries if takes_steps else 1
        drawn = [draw_fresh(adversary, self._generator, step=step, num_depths=depths) for _ in range(count)]
        if takes_steps and self._head_kinds is not None:
            drawn = [self._head_kinds.draw(one) for one in drawn]
        return [self._starts.draw(one) for one in drawn] if self._starts is not None and takes_steps else drawn

    def roll_out(
        self,
        adversaries: Sequence[Adversary],
        parameters: MetaParameters,
        evaluation: tuple[EvaluationBatch, ...],
        evaluation_indices: Tensor,
        weights: dict[str, float],
        *,
        takes_steps: bool = True,
        predictors: Tensor | None = None,
    ) -> list[GroupGradients]:
        """Meta-gradients of all adversaries; those of one shape run as one batch on devices where that is faster.

        Args:
            adversaries: from `draw`.
            parameters: trunk, head and learning rate to start from.
            evaluation: the evaluation batches.
            evaluation_indices: host indices of their examples.
            weights: blocking terms and their weights.
            takes_steps: whether they take inner steps (otherwise the un-adapted model is evaluated).
            predictors: (K+1, C, D), if a term needs them.
        """
        gradients = []
        for group in self._groups(adversaries):
            start = self._start(group, parameters)
            episode = self._episode(group, evaluation, evaluation_indices, takes_steps)
            found = meta_gradients(
                self._model,
                self._edited(start, group, episode.rows),
                episode,
                weights,
                predictors=predictors,
                execution=self._execution,
            )
            gradients.append(self._group_gradients(group, found, len(adversaries), parameters))
        return gradients

    def evaluate(
        self,
        adversaries: Sequence[Adversary],
        parameters: MetaParameters,
        evaluation: tuple[EvaluationBatch, ...],
        evaluation_indices: Tensor,
        steps: tuple[int, ...],
    ) -> list[tuple[Trajectory, int]]:
        """Outputs of the adversaries on the first evaluation batch at some steps, without gradients.

        Returns:
            Trajectory and number of adversaries of each group.
        """
        found = []
        for group in self._groups(adversaries):
            start = self._start(group, parameters)
            episode = self._episode(group, evaluation, evaluation_indices, True)._replace(evaluated_steps=steps)
            trajectory = evaluate(
                self._model,
                self._edited(start, group, episode.rows),
                episode,
                execution=self._execution,
            )
            found.append((trajectory, len(group)))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """State of the sampler of inner batches."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from `state_dict`."""
        self._inner.load_state_dict(state)

    def _groups(self, adversaries: Sequence[Adversary]) -> list[list[Adversary]]:
        """Groups of adversaries that run as one batch."""
        groups: dict[tuple[object, ...], list[Adversary]] = {}
        for index, adversary in enumerate(adversaries):
            key = adversary.shape() if self._data.device.type in BATCHING else (index,)
            groups.setdefault(key, []).append(adversary)
        return list(groups.values())

    def _start(self, group: Sequence[Adversary], parameters: MetaParameters) -> Start:
        stacked = torch.stack(
            [
                self._new_head(parameters, adversary) if adversary.reset_head else parameters.head.detach()
                for adversary in group
            ]
        )
        learned = parameters.head.requires_grad and not all(adversary.reset_head for adversary in group)
        rates = torch.stack(
            [
                parameters.log_learning_rate.detach()
                if adversary.learning_rate is None
                else torch.full_like(
                    parameters.log_learning_rate, math.log(adversary.learning_rate), requires_grad=False
                )
                for adversary in group
            ]
        )
        learned_rate = parameters.log_learning_rate.requires_grad and any(a.learning_rate is None for a in group)
        return Start(parameters.trunk[None], stacked.requires_grad_(learned), rates.requires_grad_(learned_rate))

    def _edited(self, start: Start, group: Sequence[Adversary], rows: Rows | None) -> Start:
        """The start with the maps of adversaries that start from edited weights."""
        trunk = start.trunk[0].detach()
        maps = [None if self._starts is None else self._starts.map(adversary, trunk) for adversary in group]
        if not any(maps):
            return start
        factor = torch.stack([torch.ones_like(trunk) if one is None else one.factor for one in maps])
        shift = torch.stack([torch.zeros_like(trunk) if one is None else one.shift for one in maps])
        if rows is not None:
            factor, shift = self._model.compress(factor, rows), self._model.compress(shift, rows)
        return start._replace(factor=factor, displacement=shift)

    def _episode(
        self,
        group: Sequence[Adversary],
        evaluation: tuple[EvaluationBatch, ...],
        evaluation_indices: Tensor,
        takes_steps: bool,
    ) -> Episode:
        settings, first = self._settings, group[0]
        seed = whole_number(0, 2**31 - 1, self._generator)
        num_steps = first.num_steps if takes_steps else 0
        drawn = torch.stack([self._inner.draw(first.batch_size, num_steps) for _ in group]) if num_steps else None
        parts = () if drawn is None else drawn.unbind(1)
        inner = tuple(self._data.batch(part, self._task, coarse=settings.compile) for part in parts)
        rows, noise = None, tuple(adversary.noise for adversary in group)
        if self._model.trunk.embedding_name is not None and not any(noise):
            used = torch.cat([evaluation_indices.flatten(), *(part.flatten() for part in parts)])
            tokens = self._data.occurring_tokens(used)
            rows = self._model.plan_rows(tokens, self._data.device, coarse=settings.compile)
        dropout = settings.dropout == "sampled" and self._model.trunk.has_dropout
        return Episode(
            data=Data(inner, evaluation, seed, dropout),
            adversary=first,
            evaluated_steps=self._evaluated_steps(num_steps),
            mode=settings.gradient_mode,
            truncation_steps=settings.truncation_steps,
            gradient_clip=settings.adversary.gradient_clip,
            rows=rows,
            noise=noise,
        )

    def _evaluated_steps(self, num_steps: int) -> tuple[int, ...]:
        """Steps at which terms of adapted models are computed."""
        settings = self._settings
        if settings.outer_steps == "last":
            return (num_steps,)
        if settings.outer_steps == "all" or settings.num_outer_evaluations > num_steps:
            return tuple(range(num_steps + 1))
        order = torch.randperm(num_steps + 1, generator=self._generator)[: settings.num_outer_evaluations]
        return tuple(sorted(order.tolist()))

    def _group_gradients(
        self, group: Sequence[Adversary], found: MetaGradients, count: int, parameters: MetaParameters
    ) -> GroupGradients:
        share = len(group) / count
        head = rate = None
        if found.head is not None:
            kept = [index for index, adversary in enumerate(group) if not adversary.reset_head]
            head = torch.stack([found.head[index] for index in kept]).sum(0) / count
        if found.log_learning_rate is not None:
            kept = [index for index, adversary in enumerate(group) if adversary.learning_rate is None]
            rate = torch.stack([found.log_learning_rate[index] for index in kept]).sum(0) / count
        scaled = found._replace(trunk=found.trunk / count)
        named = ", ".join(dict.fromkeys(adversary.describe() for adversary in group))
        times = f"{len(group)} times " if len(group) > 1 else ""
        return GroupGradients(scaled, share, head, rate, f"fresh adversary ({times}{named})")

    def _new_head(self, parameters: MetaParameters, adversary: Adversary) -> Tensor:
        return init_head(
            self._model.feature_dim,
            head_rows(adversary.head_kind, self._data.num_classes(self._task)),
            self._generator,
            device=parameters.trunk.device,
            dtype=parameters.trunk.dtype,
        )
