"""Blocking terms read off an episode: from what was seen to scalars, and back to cotangents of what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.inner.problems import View, Watch
from sdm_ray.meta.objectives import TERMS, Trajectory, example_losses, predictor_loss, weighted_sum

MAIN, ASIDE = 0, 1
"""Watches of an episode: the task that is adapted to, and the harmful task beside an adaptation to the desired one."""
WATCH_OF = {
    "harmful_base": MAIN,
    "harmful_adapted": MAIN,
    "predicted": MAIN,
    "desired_adapted": MAIN,
    "desired_adapted_harmful": ASIDE,
}
"""Which watch each kind of term reads."""


class Seen(NamedTuple):
    """Everything that was seen of A adversaries at S moments, stacked; one entry a watch."""

    features: tuple[Tensor, ...]
    """Each (S, A, B, D)."""
    logits: tuple[Tensor, ...]
    """Each (S, A, B, C)."""
    moments: tuple[int, ...]
    """(S,)."""

    @classmethod
    def of(cls, views: Sequence[Sequence[View]], moments: tuple[int, ...]) -> Seen:
        """Stack the views of every moment and watch."""
        columns = list(zip(*views, strict=True))
        features = tuple(torch.stack([view.features for view in column]) for column in columns)
        return cls(features, tuple(torch.stack([view.logits for view in column]) for column in columns), moments)

    def leaves(self) -> Seen:
        """The same without history, as leaves that require gradients."""
        features = tuple(value.detach().requires_grad_() for value in self.features)
        return Seen(features, tuple(value.detach().requires_grad_() for value in self.logits), self.moments)

    def trajectory(self, watch: int, labels: Tensor, moments: tuple[int, ...]) -> Trajectory:
        """What was seen on a watch at some moments, adversary after adversary."""
        chosen = [self.moments.index(moment) for moment in moments]
        features, logits = (
            torch.stack([value[index] for index in chosen], dim=1).flatten(0, 1)
            for value in (self.features[watch], self.logits[watch])
        )
        return Trajectory(logits, features, labels, moments * self.logits[watch].shape[1])

    def pulled(self, gradients: Sequence[Tensor | None]) -> list[list[View | None]]:
        """Gradients of `tensors()` as cotangents of the views of every moment and watch."""
        count = len(self.features)
        features, logits = gradients[:count], gradients[count:]
        return [[_view(features[w], logits[w], index) for w in range(count)] for index in range(len(self.moments))]

    def tensors(self) -> tuple[Tensor, ...]:
        """Features, then logits."""
        return (*self.features, *self.logits)


class Question(NamedTuple):
    """What the terms are and what they are read on."""

    weights: Mapping[str, float]
    """Term to weight."""
    watches: tuple[Watch, ...]
    """The outer batches."""
    moments: tuple[int, ...]
    """Moments at which terms of adapted models are read."""
    predictors: Tensor | None
    """(K+1, C, D) step-wise predictors of the harmful label; None where no term reads them."""


def read_terms(question: Question, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of terms over all adversaries, and every term's mean over them (detached, its natural sign).

    Terms of inner gradients are not among them.
    """
    values = {}
    for name in question.weights:
        term = TERMS[name]
        if term.reads not in WATCH_OF:
            continue
        watch = WATCH_OF[term.reads]
        labels = question.watches[watch].batch.labels
        moments = (0,) if term.reads == "harmful_base" else question.moments
        trajectory = seen.trajectory(watch, labels, moments)
        if term.reads == "predicted":
            values[name] = term.function(trajectory, predictors_at(question, trajectory))
        else:
            values[name] = term.function(trajectory)
    num_adversaries = seen.logits[MAIN].shape[1]
    if not values:
        return seen.logits[MAIN].new_zeros(()), {}
    total = weighted_sum(values, question.weights) * num_adversaries
    return total, {name: value.detach() for name, value in values.items()}


def own_loss(question: Question, seen: Seen, watch: int = MAIN) -> Tensor:
    """The adversaries' own losses on a watch: the sum over adversaries of the mean over moments."""
    trajectory = seen.trajectory(watch, question.watches[watch].batch.labels, question.moments)
    num_adversaries = seen.logits[watch].shape[1]
    return example_losses(trajectory.logits, trajectory.labels).mean() * num_adversaries


def predictors_at(question: Question, trajectory: Trajectory) -> Tensor:
    """(S, C, D) the predictor of every moment of a trajectory."""
    assert question.predictors is not None
    return torch.stack([question.predictors[step] for step in trajectory.steps])


def predictor_gradient(question: Question, seen: Seen) -> Tensor:
    """(K+1, C, D) gradient of the predictors' own loss."""
    assert question.predictors is not None
    leaf = question.predictors.detach().requires_grad_()
    asked = question._replace(predictors=leaf)
    trajectory = seen.trajectory(MAIN, question.watches[MAIN].batch.labels, question.moments)
    still = trajectory._replace(features=trajectory.features.detach())
    (gradient,) = torch.autograd.grad(predictor_loss(still, predictors_at(asked, still)), leaf)
    return gradient


def fixed_head_gradient(question: Question, seen: Seen) -> Tensor:
    """(C, D) gradient of the harmful loss with respect to the head that stands still aside."""
    head = question.watches[ASIDE].head
    assert head is not None
    leaf = head.detach().requires_grad_()
    trajectory = seen.trajectory(ASIDE, question.watches[ASIDE].batch.labels, question.moments)
    scores = trajectory.features.detach() @ leaf.mT
    (gradient,) = torch.autograd.grad(example_losses(scores, trajectory.labels).mean(), leaf)
    return gradient


def _view(features: Tensor | None, logits: Tensor | None, index: int) -> View | None:
    if features is None and logits is None:
        return None
    chosen = (None if value is None else value[index] for value in (features, logits))
    return View(*chosen)  # type: ignore[arg-type]
