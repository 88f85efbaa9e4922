"""The trainings of `attack/engine/token_fits.py` by automatic differentiation and PyTorch's own Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_ray.attack.engine import token_fits as fits
from sdm_ray.core.types import Params

Losses = Callable[[Params], Tensor]
"""(A,) losses on all examples."""


@contextmanager
def few_steps() -> Iterator[None]:
    """Readers of this process take few steps, for tests that do not ask how well they read."""
    with mock.patch.multiple(fits, QUERY_STEPS=3, LOGISTIC_STEPS=3, PERCEPTRON_STEPS=3):
        yield


def query_losses(states: Tensor, mask: Tensor, labels: Tensor) -> Losses:
    def losses(params: Params) -> Tensor:
        scores = torch.einsum("anlk,ak->anl", states, params["query"]).masked_fill(~mask, -torch.inf)
        pooled = torch.einsum("anl,anlk->ank", scores.softmax(2), states)
        penalty = params["query"].square().sum(1) + params["weight"].square().sum((1, 2))
        return cross_entropy(pooled @ params["weight"] + params["bias"], labels) + fits.QUERY_PENALTY / 2 * penalty

    return losses


def logistic_losses(features: Tensor, labels: Tensor, penalties: Tensor) -> Losses:
    def losses(params: Params) -> Tensor:
        squares = params["weight"].square().sum((1, 2))
        return cross_entropy(fits.forward(params, features), labels) + penalties / 2 * squares

    return losses


def perceptron_losses(features: Tensor, labels: Tensor, penalties: Tensor) -> Losses:
    def losses(params: Params) -> Tensor:
        squares = params["inner"].square().sum((1, 2)) + params["weight"].square().sum((1, 2))
        share = fits.PERCEPTRON_PENALTY * penalties / 2
        return cross_entropy(fits.forward(params, features), labels) + share * squares

    return losses


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores.movedim(-1, 1), labels.expand(scores.shape[:2]), reduction="none").mean(1)


def trained(params: Params, losses: Losses, num_steps: int, rate: float) -> Params:
    """Parameters after Adam's steps on all examples, at a rate that falls to 0 along half a cosine."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=rate, betas=fits.BETAS, eps=fits.EPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        losses(leaves).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {name: value.detach() for name, value in leaves.items()}
