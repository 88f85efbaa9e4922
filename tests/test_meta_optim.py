"""Inner optimisers follow torch.optim's trajectories and can be differentiated through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdm_ray.meta.optim import clip_by_norm, make_optimizer, safe_sqrt

REFERENCES = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9),
    "adam": lambda params, lr: torch.optim.Adam(params, lr),
}


def quadratic(params: tuple[Tensor, ...]) -> Tensor:
    """A non-separable loss that leaves row 0 of the first parameter without any gradient."""
    return (params[0][1:].sin() * params[1]).square().sum() + params[1].exp().sum()


def start() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (3, 3)))


def run(name: str, lr: Tensor | float, steps: int, params: tuple[Tensor, ...], exact: bool) -> tuple[Tensor, ...]:
    optimizer = make_optimizer(name)
    state = optimizer.init(params)
    for _ in range(steps):
        grads = torch.autograd.grad(quadratic(params), params, create_graph=exact)
        params, state = optimizer.update(grads, state, params, lr)
        if not exact:
            params = tuple(p.detach().requires_grad_() for p in params)
    return params


@pytest.mark.parametrize("name", REFERENCES)
def test_trajectory_is_that_of_torch_optim(name: str) -> None:
    reference = [p.clone().requires_grad_() for p in start()]
    optimizer = REFERENCES[name](reference, 0.01)
    ours = tuple(p.clone().requires_grad_() for p in start())
    for steps in range(1, 21):
        optimizer.zero_grad()
        quadratic(tuple(reference)).backward()
        optimizer.step()
        params = run(name, 0.01, steps, ours, exact=False)
        for origin, mine, theirs in zip(start(), params, reference, strict=True):
            torch.testing.assert_close(mine - origin, theirs.detach() - origin, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", REFERENCES)
def test_derivatives_through_the_updates_equal_finite_differences(name: str) -> None:
    first, second = (p.requires_grad_() for p in start())
    rate = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)

    def final(first: Tensor, second: Tensor, rate: Tensor) -> Tensor:
        return quadratic(run(name, rate, 4, (first, second), exact=True))

    gradients = torch.autograd.grad(final(first, second, rate), (first, second, rate))
    assert all(g.isfinite().all() for g in gradients)
    # Row 0 of the first parameter has no gradient, so Adam's second moment is 0 there: perturb the others.
    origin = (first.detach(), second.detach(), rate.detach())
    for position, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(position), dtype=torch.float64)
        if position == 0:
            direction[0] = 0
        ends = []
        for sign in (1, -1):
            moved = [p.clone() for p in origin]
            moved[position] += sign * 1e-6 * direction
            ends.append(final(*(p.requires_grad_() for p in moved)).item())
        expected = (ends[0] - ends[1]) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_square_root_has_no_slope_at_zero() -> None:
    value = torch.tensor([0.0, 4.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(safe_sqrt(value).sum(), value)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(safe_sqrt(value).detach(), torch.tensor([0.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_that_of_torch(max_norm: float) -> None:
    params = [p.requires_grad_() for p in start()]
    quadratic(tuple(params)).backward()
    ours = clip_by_norm(tuple(p.grad.clone() for p in params if p.grad is not None), max_norm)
    torch.nn.utils.clip_grad_norm_(params, max_norm)
    for mine, param in zip(ours, params, strict=True):
        torch.testing.assert_close(mine, param.grad, rtol=1e-12, atol=1e-12)


def test_clipping_zero_gradients_has_a_finite_derivative() -> None:
    value = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (clipped,) = clip_by_norm((value * 2,), 1.0)
    (gradient,) = torch.autograd.grad(clipped.sum(), value)
    assert gradient.isfinite().all()


def test_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown inner optimiser 'lion'; known: sgd, momentum, adam"):
        make_optimizer("lion")
