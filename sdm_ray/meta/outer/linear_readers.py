"""Linear readers of single tokens, and the direction in which what they read differs between classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sdm_ray.core.seeds import seeded

READER_STEPS, READER_RATE, READER_BATCH = 150, 0.02, 256
READER_STD, READER_DECAY, READER_SCALE = 0.01, 1e-3, 4.0
"""Of a reader: deviation of its first weights, weight decay, and what its scores are multiplied by."""
NOTHING = 1e-9
"""Difference of means, relative to the states' deviation, that is none."""


class Texts(NamedTuple):
    """Labelled texts with the states of their tokens."""

    states: Tensor
    """(N, L, D)."""
    mask: Tensor
    """(N, L) bool; True on tokens."""
    labels: Tensor
    """(N,) class indices."""


class Reader(NamedTuple):
    """A query and a linear read-out of what it attends to."""

    query: Tensor
    """(D,)."""
    weight: Tensor
    """(D, C)."""
    bias: Tensor
    """(C,)."""
    centre: Tensor
    scale: Tensor
    """(D,) mean and deviation of tokens."""

    def attended(self, texts: Texts, states: Tensor | None = None) -> Tensor:
        """(N, D) means of states under the weights that the query gives; by default the standardised states."""
        standardised = (texts.states - self.centre) / self.scale
        scores = (standardised @ self.query).masked_fill(~texts.mask, -1e4)
        read = standardised if states is None else states
        return torch.einsum("nl,nld->nd", scores.softmax(1), read)

    def scores(self, texts: Texts) -> Tensor:
        """(N, C)."""
        return READER_SCALE * (self.attended(texts) @ self.weight) + self.bias


def fit_reader(texts: Texts, seed: int, turn: int, site: int) -> Reader:
    """A reader of texts, by Adam."""
    generator = seeded(seed, "erase", turn, site)
    tokens = texts.states[texts.mask]
    centre, scale = tokens.mean(0), tokens.std(0) + 1e-6
    classes, width = int(texts.labels.max()) + 1, tokens.shape[1]
    query = (torch.randn(width, generator=generator) * READER_STD).to(tokens).requires_grad_()
    weight = (torch.randn(width, classes, generator=generator) * READER_STD).to(tokens).requires_grad_()
    bias = tokens.new_zeros(classes).requires_grad_()
    reader = Reader(query, weight, bias, centre, scale)
    optimizer = torch.optim.Adam([query, weight, bias], lr=READER_RATE)
    for _ in range(READER_STEPS):
        rows = torch.randint(len(texts.labels), (READER_BATCH,), generator=generator).to(tokens.device)
        batch = Texts(texts.states[rows], texts.mask[rows], texts.labels[rows])
        decay = weight.square().sum() + query.square().sum()
        loss = cross_entropy(reader.scores(batch), batch.labels) + READER_DECAY * decay
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Reader(query.detach(), weight.detach(), bias.detach(), centre, scale)


@torch.no_grad()
def balanced(reader: Reader, texts: Texts) -> float:
    """Balanced accuracy of a reader."""
    right, labels = reader.scores(texts).argmax(1) == texts.labels, texts.labels
    return float(torch.stack([right[labels == label].double().mean() for label in torch.unique(labels)]).mean())


def between(values: Tensor, labels: Tensor) -> Tensor:
    """(C, D) float64 classes' means of (N, D) less the mean of all, each times the root of its share."""
    values = values.double()
    classes = torch.unique(labels)
    shares = torch.stack([(labels == label).double().mean() for label in classes])
    means = torch.stack([values[labels == label].mean(0) for label in classes])
    return shares.sqrt()[:, None] * (means - values.mean(0))


def mean_covector(values: Tensor, labels: Tensor, metric: Tensor | None, spared: Tensor | None) -> Tensor | None:
    """The unit covector (D,) whose erasure along a metric takes most of what class means of (N, D) differ in; None
    where they do not."""
    means = between(values, labels)
    if spared is not None:
        means = means - (means @ spared.T) @ spared
    if means.norm() <= NOTHING * values.double().std(0).norm():
        return None
    if metric is None:
        covector: Tensor = torch.linalg.svd(means, full_matrices=False).Vh[0]
        return covector
    sizes, axes = torch.linalg.eigh(metric)
    root = (axes * sizes.rsqrt()) @ axes.T
    covector = root @ torch.linalg.svd(means @ root, full_matrices=False).Vh[0]
    covector /= covector.norm()
    return covector


__all__ = ["Reader", "Texts", "balanced", "between", "fit_reader", "mean_covector"]
