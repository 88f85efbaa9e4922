"""Training of many small readers at once: learned queries, logistic regressions and perceptrons, stacked.

Gradients are written out: the problems are so small that automatic differentiation and an optimizer object take most of
the time (`tests/benchmarks/token_fits.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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
BETAS, EPS = (0.9, 0.99), 1e-8
"""Of Adam."""
QUERY_PENALTY = 1e-3
"""Of a query and the weights beside it, times half their square."""
PERCEPTRON_PENALTY = 0.01
"""A perceptron's penalty is this share of the one that a logistic regression takes: its weights are many and small."""

Check = Callable[[], None]
"""Raises where the time is up."""
Rows = Tensor | slice
"""Examples of a step."""
Gradients = Callable[[Params, Rows], Params]
"""Gradients of the sum of A losses, by the names of the parameters."""


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
    many, count, length, width = states.shape
    start = torch.randn(many, width, generator=generator).to(states) / width
    params = {"query": start, "weight": states.new_zeros(many, width, num_classes)}
    params["bias"] = states.new_zeros(many, 1, num_classes)
    absent, targets = ~mask, _targets(labels, num_classes, states)

    def gradients(params: Params, rows: Rows) -> Params:
        chosen = states[:, rows]
        flat = chosen.reshape(many, -1, width)
        scores = (flat @ params["query"][..., None]).view(many, -1, length).masked_fill(absent[rows], -torch.inf)
        attention = scores.softmax(2)
        pooled = (attention[:, :, None] @ chosen)[:, :, 0]
        error = _error(pooled @ params["weight"] + params["bias"], targets[rows])
        by_state = (chosen @ (error @ params["weight"].mT)[..., None])[..., 0]
        by_score = attention * (by_state - (attention * by_state).sum(2, keepdim=True))
        return {
            "query": (by_score.view(many, 1, -1) @ flat)[:, 0] + QUERY_PENALTY * params["query"],
            "weight": pooled.mT @ error + QUERY_PENALTY * params["weight"],
            "bias": error.sum(1, keepdim=True),
        }

    batches = _batches(count, QUERY_STEPS, generator, states.device)
    return _adam(params, gradients, batches, QUERY_STEPS, QUERY_RATE, check)["query"]


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
    targets, penalties = _targets(labels, num_classes, features), penalties[:, None, None]

    def gradients(params: Params, rows: Rows) -> Params:
        chosen = features[:, rows]
        error = _error(chosen @ params["weight"] + params["bias"], targets[rows])
        return {
            "weight": chosen.mT @ error + penalties * params["weight"],
            "bias": error.sum(1, keepdim=True),
        }

    batches = _batches(count, LOGISTIC_STEPS, generator, features.device)
    return _adam(params, gradients, batches, LOGISTIC_STEPS, LOGISTIC_RATE, check)


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
    targets, penalties = _targets(labels, num_classes, features), PERCEPTRON_PENALTY * penalties[:, None, None]

    def gradients(params: Params, rows: Rows) -> Params:
        chosen = features[:, rows]
        hidden = torch.relu(chosen @ params["inner"] + params["shift"])
        error = _error(hidden @ params["weight"] + params["bias"], targets[rows])
        by_hidden = (error @ params["weight"].mT).masked_fill(hidden == 0, 0.0)
        return {
            "inner": chosen.mT @ by_hidden + penalties * params["inner"],
            "shift": by_hidden.sum(1, keepdim=True),
            "weight": hidden.mT @ error + penalties * params["weight"],
            "bias": error.sum(1, keepdim=True),
        }

    batches = _batches(count, PERCEPTRON_STEPS, generator, features.device)
    return _adam(params, gradients, batches, PERCEPTRON_STEPS, PERCEPTRON_RATE, check)


def forward(params: Params, features: Tensor) -> Tensor:
    """(A, N, C) scores of logistic regressions, or of perceptrons, for features (A, N, F)."""
    if "inner" in params:
        features = torch.relu(features @ params["inner"] + params["shift"])
    return features @ params["weight"] + params["bias"]


def _targets(labels: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """(N, C) one-hot labels of another tensor's dtype and device."""
    return F.one_hot(labels, num_classes).to(like)


def _error(scores: Tensor, targets: Tensor) -> Tensor:
    """(A, N, C) gradients of the mean cross-entropy by scores (A, N, C), for one-hot targets (N, C)."""
    return (scores.softmax(2) - targets) / scores.shape[1]


def _batches(count: int, num_steps: int, generator: torch.Generator, device: torch.device) -> Iterator[Rows]:
    """Rows of each step: all of them, or parts of shuffled epochs."""
    if count <= BATCH:
        yield from (slice(None) for _ in range(num_steps))
        return
    waiting = torch.arange(0)
    for _ in range(num_steps):
        if len(waiting) < BATCH:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        rows, waiting = waiting[:BATCH], waiting[BATCH:]
        yield rows.to(device)


def _adam(
    params: Params, gradients: Gradients, batches: Iterator[Rows], num_steps: int, rate: float, check: Check
) -> Params:
    """Parameters after Adam's steps on A losses, each a problem of its own; all parameters move as one vector."""
    flat = torch.cat([value.flatten() for value in params.values()])
    views = dict(zip(params, torch.split(flat, [value.numel() for value in params.values()]), strict=True))
    current = {name: views[name].view_as(value) for name, value in params.items()}
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
    with torch.no_grad():
        for step, rows in enumerate(batches):
            check()
            found = gradients(current, rows)
            gradient = torch.cat([found[name].flatten() for name in current])
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            spread = (square / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(EPS)
            here = rate / 2 * (1 + math.cos(math.pi * step / num_steps))
            flat.addcdiv_(mean, spread, value=-here / (1 - BETAS[0] ** (step + 1)))
    return current
