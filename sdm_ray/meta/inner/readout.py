"""Reading blocking terms off an episode: from model outputs to scalars, and back to cotangents of the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.inner.head_reader import Outputs
from sdm_ray.meta.inner.problems import EvaluationBatch
from sdm_ray.meta.objectives import TERMS, Trajectory, example_losses, predictor_loss, weighted_sum

MAIN, BESIDE = 0, 1
"""Positions of an episode's evaluation batches: the task that is adapted to, and the harmful task beside an adaptation
to the desired one."""
BATCH_OF = {
    "harmful_base": MAIN,
    "harmful_adapted": MAIN,
    "predicted": MAIN,
    "desired_adapted": MAIN,
    "desired_adapted_harmful": BESIDE,
}
"""Which evaluation batch each kind of term reads."""


class StackedOutputs(NamedTuple):
    """Outputs of A adversaries at S evaluated steps, stacked; one entry an evaluation batch."""

    features: tuple[Tensor, ...]
    """Each (S, A, B, D)."""
    logits: tuple[Tensor, ...]
    """Each (S, A, B, C)."""
    steps: tuple[int, ...]
    """(S,)."""

    @classmethod
    def of(cls, outputs: Sequence[Sequence[Outputs]], steps: tuple[int, ...]) -> StackedOutputs:
        """Stack the outputs of every evaluated step and evaluation batch."""
        columns = list(zip(*outputs, strict=True))
        features = tuple(torch.stack([one.features for one in column]) for column in columns)
        return cls(features, tuple(torch.stack([one.logits for one in column]) for column in columns), steps)

    def leaves(self) -> StackedOutputs:
        """The same values as leaves that require gradients."""
        features = tuple(value.detach().requires_grad_() for value in self.features)
        return StackedOutputs(features, tuple(value.detach().requires_grad_() for value in self.logits), self.steps)

    def trajectory(self, position: int, labels: Tensor, steps: tuple[int, ...]) -> Trajectory:
        """Outputs on one evaluation batch at some of the steps, adversary after adversary."""
        chosen = [self.steps.index(step) for step in steps]
        features, logits = (
            torch.stack([value[index] for index in chosen], dim=1).flatten(0, 1)
            for value in (self.features[position], self.logits[position])
        )
        return Trajectory(logits, features, labels, steps * self.logits[position].shape[1])

    def cotangents(self, gradients: Sequence[Tensor | None]) -> list[list[Outputs | None]]:
        """Gradients of `tensors()` as cotangents of the outputs of every step and evaluation batch."""
        count = len(self.features)
        features, logits = gradients[:count], gradients[count:]
        return [[_at(features[b], logits[b], index) for b in range(count)] for index in range(len(self.steps))]

    def tensors(self) -> tuple[Tensor, ...]:
        """Features, then logits."""
        return (*self.features, *self.logits)


class Readout(NamedTuple):
    """Which terms are computed, and on what."""

    weights: Mapping[str, float]
    """Term to weight."""
    evaluation: tuple[EvaluationBatch, ...]
    """The evaluation batches."""
    steps: tuple[int, ...]
    """Steps at which terms of adapted models are computed."""
    predictors: Tensor | None
    """(K+1, C, D) step-wise predictors of the harmful label; None where no term reads them."""

    def reads(self, *kinds: str) -> dict[str, float]:
        """The terms, with their weights, that read one of the given kinds."""
        return {name: weight for name, weight in self.weights.items() if TERMS[name].reads in kinds}

    def trajectory(self, outputs: StackedOutputs, position: int = MAIN) -> Trajectory:
        """Outputs on one evaluation batch at the readout's steps."""
        return outputs.trajectory(position, self.evaluation[position].batch.labels, self.steps)


def read_terms(readout: Readout, outputs: StackedOutputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of terms over all adversaries, and every term's mean over them (detached, its natural sign).

    Terms of inner gradients are not among them.
    """
    values = {}
    for name in readout.weights:
        term = TERMS[name]
        if term.reads not in BATCH_OF:
            continue
        position = BATCH_OF[term.reads]
        labels = readout.evaluation[position].batch.labels
        steps = (0,) if term.reads == "harmful_base" else readout.steps
        trajectory = outputs.trajectory(position, labels, steps)
        if term.reads == "predicted":
            values[name] = term.function(trajectory, predictors_at(readout, trajectory))
        else:
            values[name] = term.function(trajectory)
    num_adversaries = outputs.logits[MAIN].shape[1]
    if not values:
        return outputs.logits[MAIN].new_zeros(()), {}
    total = weighted_sum(values, readout.weights) * num_adversaries
    return total, {name: value.detach() for name, value in values.items()}


def own_loss(readout: Readout, outputs: StackedOutputs) -> Tensor:
    """The adversaries' own losses: the sum over adversaries of the mean over the readout's steps."""
    trajectory = readout.trajectory(outputs)
    num_adversaries = outputs.logits[MAIN].shape[1]
    return example_losses(trajectory.logits, trajectory.labels).mean() * num_adversaries


def predictors_at(readout: Readout, trajectory: Trajectory) -> Tensor:
    """(S, C, D) the predictor of every step of a trajectory."""
    assert readout.predictors is not None
    return torch.stack([readout.predictors[step] for step in trajectory.steps])


def predictor_gradient(readout: Readout, outputs: StackedOutputs) -> Tensor:
    """(K+1, C, D) gradient of the predictors' own loss."""
    assert readout.predictors is not None
    leaf = readout.predictors.detach().requires_grad_()
    trajectory = readout.trajectory(outputs)
    detached = trajectory._replace(features=trajectory.features.detach())
    predictors = predictors_at(readout._replace(predictors=leaf), detached)
    (gradient,) = torch.autograd.grad(predictor_loss(detached, predictors), leaf)
    return gradient


def fixed_head_gradient(readout: Readout, outputs: StackedOutputs) -> Tensor:
    """(C, D) gradient of the harmful loss with respect to the head that does not adapt."""
    head = readout.evaluation[BESIDE].head
    assert head is not None
    leaf = head.detach().requires_grad_()
    trajectory = readout.trajectory(outputs, BESIDE)
    scores = trajectory.features.detach() @ leaf.mT
    (gradient,) = torch.autograd.grad(example_losses(scores, trajectory.labels).mean(), leaf)
    return gradient


def _at(features: Tensor | None, logits: Tensor | None, index: int) -> Outputs | None:
    if features is None and logits is None:
        return None
    chosen = (None if value is None else value[index] for value in (features, logits))
    return Outputs(*chosen)  # type: ignore[arg-type]
