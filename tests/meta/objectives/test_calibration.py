"""Calibration equals a convex solver in value, and finite differences of the minimum in gradient."""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.objectives.calibration import calibrate, calibrated_cross_entropy
from tests.fakes.files import NoHostSync


def solved(logits: Tensor, labels: Tensor) -> Tensor:
    """Values (S,) of an independent convex solver."""
    onehot = F.one_hot(labels, logits.shape[-1]).double().numpy()
    values = []
    for z in logits.double().numpy():
        weights = cp.Variable((z.shape[1], z.shape[1]))
        scores = z @ weights
        loss = cp.sum(cp.log_sum_exp(scores, axis=1)) - cp.sum(cp.multiply(onehot, scores))
        problem = cp.Problem(cp.Minimize(loss / len(z)), [weights <= 1, weights >= -1])
        values.append(problem.solve(solver=cp.CLARABEL))
    return torch.from_numpy(np.array(values))


def problems(kind: str, num_classes: int, scale: float) -> tuple[Tensor, Tensor]:
    """Logits (3, 20, C) and labels (20,)."""
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(num_classes, (20,), generator=generator)
    onehot = F.one_hot(labels, num_classes).double()
    z = torch.randn(3, 20, num_classes, generator=generator, dtype=torch.float64)
    if kind == "separable":
        z = onehot + 0.1 * z
    elif kind == "flipped":
        z = 0.5 * z - onehot
    elif kind == "collinear":
        z = z[..., :1] * torch.linspace(-1, 1, num_classes, dtype=torch.float64) + 1e-4 * z
    elif kind == "outlier":
        z[:, 0] *= 20
    return z * scale, labels


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("kind", ["noise", "separable", "flipped", "collinear", "outlier"])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_value_is_that_of_a_convex_solver(kind: str, num_classes: int, scale: float) -> None:
    logits, labels = problems(kind, num_classes, scale)
    expected = solved(logits, labels)
    torch.testing.assert_close(calibrated_cross_entropy(logits, labels), expected, rtol=0, atol=1e-6)
    single = calibrated_cross_entropy(logits.float(), labels)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_map_stays_in_its_box(num_classes: int) -> None:
    logits, labels = problems("separable", num_classes, 3.0)
    weights = calibrate(logits, labels)
    assert weights.shape == (3, num_classes, num_classes)
    assert weights.abs().max() <= 1


@pytest.mark.parametrize("kind", ["noise", "flipped", "separable"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_envelope_gradient_is_that_of_the_minimum(kind: str, num_classes: int) -> None:
    logits, labels = problems(kind, num_classes, 1.0)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(calibrated_cross_entropy(logits, labels).sum(), logits)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ends = [calibrated_cross_entropy(logits + step * direction, labels).sum() for step in (1e-4, -1e-4)]
    expected = (ends[0] - ends[1]) / 2e-4
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-6)


def test_flipped_labels_block_nothing() -> None:
    logits, labels = problems("separable", 2, 5.0)
    flipped = calibrated_cross_entropy(-logits, labels)
    torch.testing.assert_close(flipped, calibrated_cross_entropy(logits, labels), rtol=0, atol=1e-6)
    assert F.cross_entropy(-logits[0], labels) > 2
    assert flipped.max() < 0.1


def test_no_knowledge_costs_log_c() -> None:
    labels = torch.arange(12) % 3
    value = calibrated_cross_entropy(torch.zeros(2, 12, 3), labels)
    torch.testing.assert_close(value, torch.full((2,), math.log(3)))


def test_the_solver_never_waits_for_the_device() -> None:
    logits, labels = problems("noise", 3, 1.0)
    with NoHostSync():
        calibrated_cross_entropy(logits.requires_grad_(), labels).sum().backward()
        calibrated_cross_entropy(logits[..., :2], labels.clamp_max(1))
