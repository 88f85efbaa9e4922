"""Terms of published defences against what their papers define, computed in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.objectives import (
    Trajectory,
    collapse,
    desired_well_conditioning,
    harmful_ill_conditioning,
    harmful_midpoint,
    harmful_reduction,
    representation_noise,
    weight_distance,
)
from sdm_ray.meta.objectives.conditioning import head_hessian


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def discrepancy(samples: np.ndarray, others: np.ndarray) -> float:
    """The biased squared discrepancy, pair by pair."""
    everything = [*samples, *others]
    squares = [[float(((one - other) ** 2).sum()) for other in everything] for one in everything]
    count = len(everything)
    mean = sum(map(sum, squares)) / (count * (count - 1))

    def kernel(i: int, j: int) -> float:
        return sum(math.exp(-squares[i][j] / (mean * 2.0**power)) for power in range(-2, 3))

    half = len(samples)
    ours, theirs = range(half), range(half, count)
    parts = [np.mean([kernel(i, j) for i in one for j in two]) for one, two in ((ours, ours), (theirs, theirs))]
    return float(sum(parts) - 2 * np.mean([kernel(i, j) for i in ours for j in theirs]))


def test_noise_is_the_mean_discrepancy_of_texts_over_layers_without_padding() -> None:
    hidden, noise = 2 * normal(2, 3, 4, 5) + 1, normal(2, 3, 4, 5, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    keep = mask[..., None].numpy()
    expected = np.mean(
        [
            discrepancy((one.numpy() * keep).reshape(3, -1), (other.numpy() * keep).reshape(3, -1))
            for one, other in zip(hidden, noise, strict=True)
        ]
    )
    assert representation_noise(hidden, noise, mask).item() == pytest.approx(expected, rel=1e-9)
    assert representation_noise(noise, noise, mask).item() == pytest.approx(0, abs=1e-12)
    padded = hidden.masked_fill(mask[..., None] == 0, 1e3)
    assert representation_noise(padded, noise, mask).item() == pytest.approx(expected, rel=1e-9)


def test_states_that_descend_become_noise() -> None:
    """Of states that all lie in one place, far off, mean and variance become those of the noise."""
    hidden, mask = normal(1, 24, 1, 2) / 10 + 2, torch.ones(24, 1)
    for step in range(400):
        leaf = hidden.requires_grad_()
        (gradient,) = torch.autograd.grad(representation_noise(leaf, normal(1, 24, 1, 2, seed=step + 1), mask), leaf)
        hidden = (leaf - 2.0 * gradient).detach()
    assert hidden.mean().abs() < 0.2
    assert 0.7 < hidden.std() < 1.3


def test_equal_states_give_finite_derivatives() -> None:
    leaf = torch.zeros(1, 2, 3, 4, requires_grad=True)
    value = representation_noise(leaf, torch.zeros(1, 2, 3, 4), torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(value, leaf)
    assert (value.item(), gradient.abs().max().item()) == (0.0, 0.0)


def test_distance_is_a_root_mean_square_up_to_its_bound() -> None:
    original = torch.zeros(4)
    there = torch.tensor([3.0, 4.0, 0.0, 0.0], requires_grad=True)
    assert weight_distance(there, original).item() == pytest.approx(2.5)
    bounded = weight_distance(there, original, 2.0)
    (flat,) = torch.autograd.grad(bounded, there)
    assert (bounded.item(), flat.abs().max().item()) == (2.0, 0.0)
    (derivative,) = torch.autograd.grad(weight_distance(there, original, 3.0), there)
    torch.testing.assert_close(derivative, torch.tensor([0.3, 0.4, 0, 0]))
    here = torch.zeros(4, requires_grad=True)
    (nothing,) = torch.autograd.grad(weight_distance(here, original), here)
    assert nothing.tolist() == [0.0] * 4


def test_midpoint_is_a_loss_up_to_its_bound() -> None:
    labels, logits = torch.tensor([0, 1, 2]), normal(1, 3, 3)
    trajectory = Trajectory(logits, normal(1, 3, 2), labels, (0,))
    loss = F.cross_entropy(logits[0], labels).item()
    assert harmful_midpoint(trajectory).item() == pytest.approx(loss)
    assert harmful_midpoint(trajectory, loss / 2).item() == pytest.approx(loss / 2)
    assert harmful_midpoint(trajectory, loss * 2).item() == pytest.approx(loss)


def test_reduction_is_positive_where_a_step_helps() -> None:
    assert harmful_reduction(torch.tensor(0.7), torch.tensor(0.5)).item() == pytest.approx(0.2)


def test_collapse_is_the_cross_entropy_of_one_class_whatever_the_labels() -> None:
    logits = normal(1, 4, 3)
    for labels in (torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 2, 2])):
        value = collapse(Trajectory(logits, normal(1, 4, 2), labels, (0,)), 2)
        assert value.item() == pytest.approx(F.cross_entropy(logits[0], torch.full((4,), 2)).item())
    with pytest.raises(ValueError, match=r"blocking\.collapse is defined for class labels"):
        collapse(Trajectory(logits[..., :1], normal(1, 4, 2), torch.zeros(4), (0,)), 0)


def task(num_texts: int, num_features: int, *, classes: int = 2) -> tuple[Trajectory, Tensor]:
    """A task at one step, and its head (C, D)."""
    features, head = normal(1, num_texts, num_features), normal(classes, num_features, seed=1)
    labels = torch.arange(num_texts) % classes
    return Trajectory(features @ head.mT, features, labels, (0,)), head


@pytest.mark.parametrize("num_texts", [12, 3])
def test_the_matrix_has_the_eigenvalues_of_the_heads_hessian(num_texts: int) -> None:
    """By automatic differentiation; the softmax of two classes leaves half of them at 0, and so do too few texts."""
    trajectory, head = task(num_texts, 4)

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(trajectory.features[0] @ flat.view_as(head).mT, trajectory.labels)

    hessian = torch.autograd.functional.hessian(loss, head.flatten())
    values = torch.linalg.eigvalsh(hessian)[-min(num_texts, 4) :]
    found = torch.linalg.eigvalsh(head_hessian(trajectory)[0])
    torch.testing.assert_close(found, values / values.mean(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("num_texts", "regression"), [(12, False), (3, False), (12, True)])
def test_conditioning_is_that_of_the_papers_regularisers(num_texts: int, regression: bool) -> None:
    trajectory, _ = task(num_texts, 4)
    weights = 1 - trajectory.logits[0].softmax(-1).square().sum(-1)
    if regression:
        trajectory = trajectory._replace(labels=normal(num_texts), logits=trajectory.logits[..., :1])
        weights = torch.ones_like(weights)
    rows = trajectory.features[0].numpy() * weights.sqrt().numpy()[:, None]
    singular = np.linalg.svd(rows, compute_uv=False) ** 2
    singular /= singular.mean()
    spread = (singular**2).sum() / (2 * len(singular))
    well, ill = desired_well_conditioning(trajectory).item(), harmful_ill_conditioning(trajectory).item()
    assert well == pytest.approx(singular.max() ** 2 / 2 - spread, rel=1e-6)
    assert ill == pytest.approx(1 / (spread - singular.min() ** 2 / 2), rel=1e-6)


@pytest.mark.parametrize(("term", "factor"), [(desired_well_conditioning, 0.5), (harmful_ill_conditioning, 2.0)])
def test_descent_moves_the_condition_number_as_far_as_it_says(term, factor: float) -> None:  # type: ignore[no-untyped-def]
    trajectory, _ = task(12, 4)

    def number(at: Trajectory) -> float:
        return float(np.linalg.cond(head_hessian(at)[0].detach().numpy()))

    before, moved = number(trajectory), trajectory
    for _ in range(60):
        leaf = moved.features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(term(moved._replace(features=leaf)), leaf)
        moved = moved._replace(features=(leaf - 0.1 * gradient).detach())
    change = number(moved) / before
    assert change < factor if factor < 1 else change > factor


def test_conditioning_reads_the_first_step_of_each_adversary_and_bears_equal_eigenvalues() -> None:
    one, _ = task(12, 4)
    other = one._replace(features=one.features * torch.tensor([1.0, 2.0, 3.0, 4.0]))
    both = Trajectory(
        torch.cat([one.logits, other.logits, other.logits]),
        torch.cat([one.features, 5 + one.features, other.features]),
        one.labels,
        (0, 3, 0),
    )
    expected = (harmful_ill_conditioning(one) + harmful_ill_conditioning(other)) / 2
    assert harmful_ill_conditioning(both).item() == pytest.approx(expected.item())
    for size in (1.0, 0.0):
        leaf = (size * torch.eye(4))[None].requires_grad_()
        equal = Trajectory(torch.zeros(1, 4, 2), leaf, torch.tensor([0, 1, 0, 1]), (0,))
        for term in (desired_well_conditioning, harmful_ill_conditioning):
            value = term(equal)
            assert value.isfinite()
            assert torch.autograd.grad(value, leaf)[0].isfinite().all()
