"""Readers of frozen states, linear and not, pooled and token by token, all fitted side by side.

They take the states of the embedding or of a layer: their mean over the text, their maximum, their mean over the tokens
of the name (an attacker knows where names stand), or what a learned query attends to. A logistic regression or a
perceptron reads them.

Shapes: P problems (seeds, sites and features), H strengths of the penalty, n labelled examples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = (1e-3, 1e-2, 1e-1)
"""Of the squared weights, per reader."""
NUM_HIDDEN = 64
"""Units of the perceptron."""
NUM_STEPS = 150


class Texts(NamedTuple):
    """N tokenised texts."""

    ids: Tensor
    """(N, L)."""
    mask: Tensor
    """(N, L) 1 on tokens."""
    named: Tensor
    """(N, L) 1 on the tokens of the name."""
    labels: dict[str, Tensor]
    """(N,) class indices by column."""

    def at(self, index: Any) -> Texts:
        """Some of the texts."""
        labels = {column: values[index] for column, values in self.labels.items()}
        return Texts(self.ids[index], self.mask[index], self.named[index], labels)


class Sides(NamedTuple):
    """What an attacker has, and what it is scored on."""

    train: Texts
    validation: Texts
    test: Texts


class Score(NamedTuple):
    """Balanced accuracies of one attacker."""

    validation: float
    test: float


class Reader(NamedTuple):
    """One reader of the grid."""

    kind: str
    features: str
    site: int
    """0 is the embedding, the others are layers."""
    penalty: float


FEATURES: dict[str, Callable[[Tensor, Texts], Tensor]] = {
    "mean": lambda hidden, texts: mean_over(hidden, texts.mask),
    "name": lambda hidden, texts: mean_over(hidden, texts.named),
    "maximum": lambda hidden, texts: hidden.masked_fill(texts.mask[..., None] == 0, -torch.inf).amax(-2),
}
"""What a reader takes of states (S, N, L, D), as (S, N, D)."""


def read(texts: Sides, states: list[Tensor], column: str, drawn: Tensor) -> dict[Reader, Score]:
    """Every reader's scores, means over draws.

    Args:
        texts: three sides.
        states: (S, N, L, D) of each side.
        column: the label.
        drawn: (K, n) labelled examples of each draw, indices of the training side.
    """
    labels = [side.labels[column] for side in texts]
    num_classes, (num_draws, _) = int(labels[0].max()) + 1, drawn.shape
    num_sites = len(states[0])
    targets = labels[0][drawn].repeat_interleave(num_sites, 0)
    result: dict[Reader, Score] = {}

    def fit(kind: str, features: str, parameters: list[Tensor], scores: Callable[[int], Tensor]) -> None:
        _descend(parameters, lambda: scores(0), targets)
        with torch.no_grad():
            reached = [balanced_accuracy(scores(side).argmax(-1), labels[side]) for side in (1, 2)]
        means = [side.unflatten(1, (num_draws, num_sites)).mean(1) for side in reached]
        for row, penalty in enumerate(PENALTIES):
            for site in range(num_sites):
                values = (side[row, site].item() for side in means)
                result[Reader(kind, features, site, penalty)] = Score(*values)

    for name, features in FEATURES.items():
        values = [features(hidden, side) for hidden, side in zip(states, texts, strict=True)]
        problems = _standardised([values[0][:, rows] for rows in drawn], values[1:])
        fit("logistic", name, *_linear(problems, num_classes))
        if name != "maximum":
            fit("perceptron", name, *_perceptron(problems, num_classes))
    masks = [texts.train.mask[drawn].repeat_interleave(num_sites, 0), texts.validation.mask, texts.test.mask]
    tokens = [
        torch.cat([states[0][:, rows] for rows in drawn]),
        *(side.repeat(num_draws, 1, 1, 1) for side in states[1:]),
    ]
    fit("query", "tokens", *_query(tokens, masks, num_classes))
    return result


def balanced_accuracy(guesses: Tensor, labels: Tensor) -> Tensor:
    """(...) mean over classes of the share of guesses (..., N) that is right; labels (N,)."""
    shares = [(guesses[..., labels == label] == label).float().mean(-1) for label in labels.unique()]
    return torch.stack(shares).mean(0)


def mean_over(hidden: Tensor, mask: Tensor) -> Tensor:
    """(..., N, D) mean of states (..., N, L, D) where the mask (N, L) is 1."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(-2) / weights.sum(-2)


def _standardised(drawn: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Three sides (P, N, D) by the statistics of each draw: of (S, n, D) a draw, and of (S, N, D) for the others."""
    sides: list[list[Tensor]] = [[], *([] for _ in others)]
    for values in drawn:
        mean, spread = values.mean(1, keepdim=True), values.std(1, keepdim=True) + 1e-6
        for side, part in zip(sides, (values, *others), strict=True):
            side.append((part - mean) / spread)
    return [torch.cat(side) for side in sides]


def _descend(parameters: list[Tensor], scores: Callable[[], Tensor], targets: Tensor) -> None:
    """Fit all problems by Adam: scores (H, P, n, C) to targets (P, n); the last parameter has no penalty."""
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    strengths = torch.tensor(PENALTIES)
    for _ in range(NUM_STEPS):
        guess = scores()
        goal = targets.expand(len(strengths), -1, -1)
        loss = F.cross_entropy(guess.flatten(0, 2), goal.flatten(), reduction="sum") / targets.shape[1]
        for weight in parameters[:-1]:
            loss = loss + (strengths * weight.square().flatten(1).sum(1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _drawn(*shape: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(len(PENALTIES), *shape, generator=generator) * scale).requires_grad_()


def _linear(sides: list[Tensor], num_classes: int) -> tuple[list[Tensor], Callable[[int], Tensor]]:
    count, _, width = sides[0].shape
    weight, bias = _drawn(count, width, num_classes, scale=0.0), _drawn(count, 1, num_classes, scale=0.0)
    return [weight, bias], lambda side: sides[side] @ weight + bias


def _perceptron(sides: list[Tensor], num_classes: int) -> tuple[list[Tensor], Callable[[int], Tensor]]:
    count, _, width = sides[0].shape
    first = _drawn(count, width, NUM_HIDDEN, scale=width**-0.5)
    second = _drawn(count, NUM_HIDDEN, num_classes, scale=NUM_HIDDEN**-0.5)
    offset = _drawn(count, 1, NUM_HIDDEN, scale=0.1)
    bias = _drawn(count, 1, num_classes, scale=0.0)
    return [first, second, offset, bias], lambda side: (sides[side] @ first + offset).relu() @ second + bias


def _query(sides: list[Tensor], masks: list[Tensor], num_classes: int) -> tuple[list[Tensor], Callable[[int], Tensor]]:
    present = masks[0][..., None].to(sides[0].dtype)
    total = present.sum((1, 2), keepdim=True)
    mean = (sides[0] * present).sum((1, 2), keepdim=True) / total
    spread = (((sides[0] - mean) * present).square().sum((1, 2), keepdim=True) / total).sqrt() + 1e-6
    parts = [(side - mean) / spread for side in sides]
    count, width = len(sides[0]), sides[0].shape[-1]
    query, weight = _drawn(count, width, scale=0.01), _drawn(count, width, num_classes, scale=0.01)
    bias = _drawn(count, 1, num_classes, scale=0.0)

    def scores(side: int) -> Tensor:
        attention = torch.einsum("pnld,hpd->hpnl", parts[side], query).masked_fill(masks[side] == 0, -1e4).softmax(-1)
        return torch.einsum("hpnl,pnld->hpnd", attention, parts[side]) @ weight * 4 + bias

    return [query, weight, bias], scores
