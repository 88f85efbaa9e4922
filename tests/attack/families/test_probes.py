"""Closed-form classifiers against independent solutions; what an attacker reads, and what it cannot be denied."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_ray.attack.families.probes import PROBES, logistic_regression, nearest_neighbours, ridge, standardised

GENERATOR = torch.Generator().manual_seed(0)


def blobs(count: int, width: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    noise = torch.randn(count, width, generator=GENERATOR, dtype=torch.float64)
    return centres[labels] + noise, labels


@pytest.mark.parametrize("width", [4, 40], ids=["primal", "dual"])
def test_ridge_solves_its_normal_equations(width: int) -> None:
    features, labels = blobs(30, width)
    (features,) = standardised(features, ())
    scores = ridge(features, labels, 3, 0.1)
    targets = F.one_hot(labels, 3).double()
    residual = targets - scores(features)
    weights = scores(torch.eye(width, dtype=torch.float64)) - scores(torch.zeros(1, width, dtype=torch.float64))
    gradient = -features.T @ residual + 0.1 * 30 * weights
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    torch.testing.assert_close(residual.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_logistic_regression_is_at_the_minimum_of_its_objective() -> None:
    features, labels = blobs(60, 5)
    scores = logistic_regression(features, labels, 3, 0.2)
    bias = scores(torch.zeros(1, 5, dtype=torch.float64))
    weights = (scores(torch.eye(5, dtype=torch.float64)) - bias).requires_grad_()
    bias = bias.requires_grad_()
    loss = F.cross_entropy(features @ weights + bias, labels) + 0.1 * weights.square().sum()
    for gradient in torch.autograd.grad(loss, (weights, bias)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


def test_neighbours_vote() -> None:
    features = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    scores = nearest_neighbours(features, labels, 2, 3)(torch.tensor([[9.0], [0.4]], dtype=torch.float64))
    assert scores.argmax(-1).tolist() == [1, 0]
    single = nearest_neighbours(features, labels, 2, 1)(torch.tensor([[6.0]], dtype=torch.float64))
    assert single.exp().round().tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_no_scale_of_features_hides_them(probe: str, scale: float) -> None:
    owned, labels = blobs(60, 6)
    others, wanted = blobs(90, 6)
    owned, others = standardised(owned.float() * scale, (others.float() * scale,))
    amount = 5.0 if probe == "knn" else 0.01
    scores = PROBES[probe](owned, labels, 3, amount)(others)
    assert scores.shape == (90, 3)
    assert (scores.argmax(-1) == wanted).double().mean() > 0.85


def test_features_that_are_constant_stay_finite() -> None:
    owned, other = standardised(torch.ones(5, 3), (torch.ones(2, 3),))
    assert owned.isfinite().all()
    assert not other.any()
