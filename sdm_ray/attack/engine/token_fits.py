"""Training of many small readers as one stack: learned queries, logistic regressions and perceptrons.

Gradients are written by hand, because in such small problems autograd and an optimiser object would take most of the
time (`tests/benchmarks/token_fits.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_ray.core.types import Params

HIDDEN = 64
"""Number of hidden units of a perceptron."""
BATCH = 256
"""Batch size; at most this many examples are used as one batch."""
QUERY_STEPS, LOGISTIC_STEPS, PERCEPTRON_STEPS = 100, 150, 150
QUERY_RATE, LOGISTIC_RATE, PERCEPTRON_RATE = 0.05, 0.05, 0.01
"""Numbers of Adam steps, and initial learning rates, which decay to 0 along a half cosine."""
BETAS, EPS = (0.9, 0.99), 1e-8
"""Constants of Adam."""
QUERY_PENALTY = 1e-3
"""Coefficient of half the squared norm of a query and of its classifier's weights."""
PERCEPTRON_PENALTY = 0.01
"""Factor on a perceptron's penalty relative to logistic regression, because it has many small weights."""

Check = Callable[[], None]
"""Raises an error after the deadline."""
Rows = Tensor | slice
"""Indices of a step's examples."""
Gradients = Callable[[Params, Rows], Params]
"""Gradients of the sum of A losses, by parameter name."""


def train_queries(
    states: Tensor, mask: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator, check: Check
) -> Tensor:
    """Learn a query for each of A scaled layers: logistic regression on the attention-weighted mean of the states.

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
    """Train A logistic regressions with an L2 penalty.

    Args:
        features: (A, N, F) float32, standardised.
        labels: (N,).
        num_classes: C.
        penalties: (A,) coefficients of half the squared norm of the weights.
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
    """Train A perceptrons with one hidden ReLU layer; arguments as in `train_logistic`.

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
    """(A, N, C) scores of logistic regressions or perceptrons for features (A, N, F)."""
    if "inner" in params:
        features = torch.relu(features @ params["inner"] + params["shift"])
    return features @ params["weight"] + params["bias"]


def _targets(labels: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """(N, C) one-hot labels with the dtype and device of `like`."""
    return F.one_hot(labels, num_classes).to(like)


def _error(scores: Tensor, targets: Tensor) -> Tensor:
    """(A, N, C) gradients of the mean cross-entropy with respect to scores (A, N, C), for one-hot targets (N, C)."""
    return (scores.softmax(2) - targets) / scores.shape[1]


def _batches(count: int, num_steps: int, generator: torch.Generator, device: torch.device) -> Iterator[Rows]:
    """Yield the rows of each step: all rows, or batches of shuffled epochs."""
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
    """Minimise A independent losses with Adam, whose state is one vector of all parameters; returns the parameters."""
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
