"""Training of many small readers at once: learned queries, logistic regressions and perceptrons, stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_ray.core.types import Params

HIDDEN = 64
"""Hidden units of a perceptron."""
BATCH = 256
"""Examples of a step; fewer than these are taken all at once."""
QUERY_STEPS, LOGISTIC_STEPS, PERCEPTRON_STEPS = 100, 150, 150
QUERY_RATE, LOGISTIC_RATE, PERCEPTRON_RATE = 0.05, 0.05, 0.01
"""Adam's steps and first learning rates; they fall to 0 along half a cosine."""
QUERY_PENALTY = 1e-3
"""Of a query and the weights beside it, times half their square."""
PERCEPTRON_PENALTY = 0.01
"""A perceptron's penalty is this share of the one that a logistic regression takes: its weights are many and small."""

Check = Callable[[], None]
"""Raises where the time is up."""


def train_queries(
    states: Tensor, mask: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator, check: Check
) -> Tensor:
    """Learn, for each of A scaled layers, which tokens tell: logistic regression on the states' weighted mean.

    Args:
        states: (A, N, L, K) float32.
        mask: (N, L) bool.
        labels: (N,).
        num_classes: C.
        generator: host generator.
        check: called between steps.

    Returns:
        (A, K) queries.
    """
    many, count, _, width = states.shape
    start = torch.randn(many, width, generator=generator).to(states) / width
    params = {"query": start, "weight": states.new_zeros(many, width, num_classes)}
    params["bias"] = states.new_zeros(many, 1, num_classes)

    def losses(params: Params, rows: Tensor) -> Tensor:
        chosen, absent = states[:, rows], ~mask[rows]
        scores = torch.einsum("anlk,ak->anl", chosen, params["query"]).masked_fill(absent, -torch.inf)
        pooled = torch.einsum("anl,anlk->ank", scores.softmax(2), chosen)
        penalty = params["query"].square().sum(1) + params["weight"].square().sum((1, 2))
        return _cross_entropy(pooled @ params["weight"] + params["bias"], labels[rows]) + QUERY_PENALTY / 2 * penalty

    batches = _batches(count, QUERY_STEPS, generator)
    return _adam(params, losses, batches, QUERY_STEPS, QUERY_RATE, check)["query"]


def train_logistic(
    features: Tensor, labels: Tensor, num_classes: int, penalties: Tensor, generator: torch.Generator, check: Check
) -> Params:
    """Logistic regressions with a Gaussian prior.

    Args:
        features: (A, N, F) float32, standardised.
        labels: (N,).
        num_classes: C.
        penalties: (A,), times half the squares of the weights.
        generator: host generator.
        check: called between steps.

    Returns:
        `weight` (A, F, C) and `bias` (A, 1, C).
    """
    many, count, width = features.shape
    params = {"weight": features.new_zeros(many, width, num_classes), "bias": features.new_zeros(many, 1, num_classes)}

    def losses(params: Params, rows: Tensor) -> Tensor:
        scores = features[:, rows] @ params["weight"] + params["bias"]
        return _cross_entropy(scores, labels[rows]) + penalties / 2 * params["weight"].square().sum((1, 2))

    batches = _batches(count, LOGISTIC_STEPS, generator)
    return _adam(params, losses, batches, LOGISTIC_STEPS, LOGISTIC_RATE, check)


def train_perceptrons(
    features: Tensor, labels: Tensor, num_classes: int, penalties: Tensor, generator: torch.Generator, check: Check
) -> Params:
    """Perceptrons with one hidden layer of ReLU; arguments as of `train_logistic`.

    Returns:
        `inner` (A, F, H), `shift` (A, 1, H), `weight` (A, H, C) and `bias` (A, 1, C).
    """
    many, count, width = features.shape
    params = {
        "inner": torch.randn(many, width, HIDDEN, generator=generator).to(features) / width**0.5,
        "shift": features.new_zeros(many, 1, HIDDEN),
        "weight": torch.randn(many, HIDDEN, num_classes, generator=generator).to(features) / HIDDEN**0.5,
        "bias": features.new_zeros(many, 1, num_classes),
    }

    def losses(params: Params, rows: Tensor) -> Tensor:
        squares = params["inner"].square().sum((1, 2)) + params["weight"].square().sum((1, 2))
        loss = _cross_entropy(forward(params, features[:, rows]), labels[rows])
        return loss + PERCEPTRON_PENALTY * penalties / 2 * squares

    batches = _batches(count, PERCEPTRON_STEPS, generator)
    return _adam(params, losses, batches, PERCEPTRON_STEPS, PERCEPTRON_RATE, check)


def forward(params: Params, features: Tensor) -> Tensor:
    """(A, N, C) scores of logistic regressions, or of perceptrons, for features (A, N, F)."""
    if "inner" in params:
        features = torch.relu(features @ params["inner"] + params["shift"])
    return features @ params["weight"] + params["bias"]


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """(A,) means over examples of scores (A, N, C) and labels (N,)."""
    return F.cross_entropy(scores.movedim(-1, 1), labels.expand(scores.shape[:2]), reduction="none").mean(1)


def _batches(count: int, num_steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each step: all of them, or parts of shuffled epochs."""
    if count <= BATCH:
        rows = torch.arange(count)
        yield from (rows for _ in range(num_steps))
        return
    waiting = torch.arange(0)
    for _ in range(num_steps):
        if len(waiting) < BATCH:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        rows, waiting = waiting[:BATCH], waiting[BATCH:]
        yield rows


def _adam(
    params: Params,
    losses: Callable[[Params, Tensor], Tensor],
    batches: Iterator[Tensor],
    num_steps: int,
    rate: float,
    check: Check,
) -> Params:
    """Parameters after Adam's steps on the sum of losses (A,), which is each one's own problem."""
    leaves: Sequence[Tensor] = [value.requires_grad_() for value in params.values()]
    optimizer = torch.optim.Adam(leaves, lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    with torch.enable_grad():
        for rows in batches:
            check()
            optimizer.zero_grad()
            losses(params, rows.to(leaves[0].device)).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return {name: value.detach() for name, value in params.items()}
