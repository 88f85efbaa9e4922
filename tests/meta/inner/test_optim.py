"""Inner optimisers follow torch.optim's trajectories; their adjoints are autograd's, also where nothing ever moved."""

from __future__ import annotations

import math
from collections.abc import Callable

import higher
import pytest
import torch
import torchopt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdm_ray.meta.inner.optim import (
    ADAM_EPS,
    OptimizerState,
    StepAdjoint,
    clip_adjoint,
    clip_by_norm,
    make_optimizer,
    rate_factors,
    safe_sqrt,
)

REFERENCES: dict[str, Callable[[list[dict[str, object]]], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, 0.01),
    "momentum": lambda groups: torch.optim.SGD(groups, 0.01, momentum=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, 0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, 0.01),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, 0.01),
}
NUM_ADVERSARIES, NUM_VARIABLES, NUM_COTANGENTS, NUM_STILL = 3, 7, 2, 2
SCHEDULES = ("constant", "warmup", "linear", "cosine")
seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=15, deadline=None)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def loss_of(params: Tensor) -> Tensor:
    """A non-separable loss of every adversary's variables (A, N); the first two have no gradient, ever."""
    moving = params[..., NUM_STILL:]
    return (moving.sin() * moving.roll(1, -1)).square().sum() + (0.5 * moving).exp().sum()


def gradient(params: Tensor, *, create_graph: bool = False) -> Tensor:
    if not params.requires_grad:
        params = params.detach().requires_grad_()
    return torch.autograd.grad(loss_of(params), params, create_graph=create_graph)[0]


def unrolled(name: str, params: Tensor, num_steps: int) -> Tensor:
    """Parameters after some steps, with history."""
    optimizer = make_optimizer(name)
    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = optimizer.update(gradient(params, create_graph=True), state, params, 0.01)
    return params


@pytest.mark.parametrize("rates", [(0.01, 0.01, 0.01), (0.001, 0.01, 0.1)], ids=["shared rate", "own rates"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", REFERENCES)
def test_trajectory_is_that_of_torch_optim(
    name: str, dtype: torch.dtype, tolerance: float, rates: tuple[float, ...]
) -> None:
    start = normal(NUM_ADVERSARIES, NUM_VARIABLES, dtype=dtype)
    rows = [row.clone().requires_grad_() for row in start]
    groups: list[dict[str, object]] = [{"params": [row], "lr": rate} for row, rate in zip(rows, rates, strict=True)]
    reference = REFERENCES[name](groups)
    optimizer, params = make_optimizer(name), start.clone()
    state, lr = optimizer.init(params), torch.tensor(rates, dtype=dtype)[:, None]
    for _ in range(20):
        reference.zero_grad()
        torch.stack([loss_of(row) for row in rows]).sum().backward()
        reference.step()
        params, state = optimizer.update(gradient(params), state, params, lr)
        torch.testing.assert_close(params, torch.stack(rows).detach(), rtol=tolerance, atol=tolerance)
    assert state.num_updates == 20
    assert (params[:, NUM_STILL:] != start[:, NUM_STILL:]).all()
    if name != "adamw":
        assert torch.equal(params[:, :NUM_STILL], start[:, :NUM_STILL])


def random_state(name: str, num_updates: int, seed: int) -> tuple[Tensor, OptimizerState, Tensor, Tensor]:
    """Gradients, state, parameters, learning rates (A, 1); the first variable never had a gradient, the second has had
    such small ones that their squares vanish, and the third has its first."""
    params, grads, first, second = normal(4, NUM_ADVERSARIES, NUM_VARIABLES, seed=seed)
    grads[:, :NUM_STILL] = 0
    first[:, : NUM_STILL + 1] = 0
    second = second.square()
    second[:, : NUM_STILL + 1] = 0
    grads[:, 1], first[:, 1] = 1e-170, 1e-9
    moments = {
        "sgd": (), "momentum": (first,), "adam": (first, second), "adamw": (first, second), "rmsprop": (second,)
    }[name]  # fmt: skip
    rates = normal(NUM_ADVERSARIES, 1, seed=seed + 1).exp() * 0.01
    return grads, OptimizerState(num_updates, moments), params, rates


def autograd_adjoint(
    name: str, cotangents: tuple[Tensor, ...], grads: Tensor, state: OptimizerState, params: Tensor, lr: Tensor
) -> StepAdjoint:
    given = [value.detach().clone().requires_grad_() for value in (params, grads, lr, *state.moments)]
    moved, after = make_optimizer(name).update(given[1], state._replace(moments=tuple(given[3:])), given[0], given[2])
    rows = [
        torch.autograd.grad(
            (moved, *after.moments), given, tuple(value[m] for value in cotangents),
            retain_graph=True, allow_unused=True, materialize_grads=True,
        )
        for m in range(NUM_COTANGENTS)
    ]  # fmt: skip
    back = [torch.stack(column) for column in zip(*rows, strict=True)]
    return StepAdjoint(back[0], back[1], tuple(back[3:]), back[2].squeeze(-1))


def adjoint_pair(name: str, num_updates: int, seed: int, dtype: torch.dtype) -> tuple[StepAdjoint, StepAdjoint]:
    """The closed form and autograd, for the same random state and cotangents."""
    grads, state, params, lr = random_state(name, num_updates, seed)
    grads, params, lr = grads.to(dtype), params.to(dtype), lr.to(dtype)
    state = state._replace(moments=tuple(moment.to(dtype) for moment in state.moments))
    shape = (1 + len(state.moments), NUM_COTANGENTS, NUM_ADVERSARIES, NUM_VARIABLES)
    cotangents = tuple(normal(*shape, seed=seed + 2, dtype=dtype))
    expected = autograd_adjoint(name, cotangents, grads, state, params, lr)
    copies = tuple(value.clone() for value in cotangents)
    return make_optimizer(name).adjoint(copies[0], copies[1:], grads, state, params, lr), expected


@few_examples
@given(seed=seeds, num_updates=st.integers(0, 50))
@pytest.mark.parametrize("name", REFERENCES)
def test_adjoint_is_autograd_s(name: str, seed: int, num_updates: int) -> None:
    actual, expected = adjoint_pair(name, num_updates, seed, torch.float64)
    assert actual.learning_rate.shape == (NUM_COTANGENTS, NUM_ADVERSARIES)
    torch.testing.assert_close(tuple(actual), tuple(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REFERENCES)
def test_adjoint_is_finite_where_the_second_moment_is_zero(name: str, dtype: torch.dtype) -> None:
    for num_updates in (0, 9):
        actual, _ = adjoint_pair(name, num_updates, 5, dtype)
        for value in (actual.params, actual.grads, *actual.moments, actual.learning_rate):
            assert value.isfinite().all()
            assert value.dtype == dtype


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_a_second_moment_that_underflows_has_no_slope(name: str) -> None:
    optimizer = make_optimizer(name)
    params = torch.ones(NUM_ADVERSARIES, NUM_VARIABLES)
    grads, lr, state = params * 1e-25, torch.full((NUM_ADVERSARIES, 1), 0.01), optimizer.init(params)
    shape = (1 + optimizer.num_moments, NUM_COTANGENTS, NUM_ADVERSARIES, NUM_VARIABLES)
    cotangents = tuple(normal(*shape, dtype=torch.float32))
    expected = autograd_adjoint(name, cotangents, grads, state, params, lr)
    actual = optimizer.adjoint(
        cotangents[0].clone(), tuple(c.clone() for c in cotangents[1:]), grads, state, params, lr
    )
    torch.testing.assert_close(tuple(actual), tuple(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFERENCES)
def test_adjoint_takes_a_number_for_a_rate(name: str) -> None:
    grads, state, params, _ = random_state(name, 3, 0)
    cotangents = normal(1 + len(state.moments), NUM_COTANGENTS, NUM_ADVERSARIES, NUM_VARIABLES)
    tensor = torch.full((NUM_ADVERSARIES, 1), 0.01, dtype=torch.float64)
    expected = autograd_adjoint(name, tuple(cotangents), grads, state, params, tensor)
    actual = make_optimizer(name).adjoint(cotangents[0], tuple(cotangents[1:]), grads, state, params, 0.01)
    torch.testing.assert_close(tuple(actual), tuple(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REFERENCES)
def test_unrolled_steps_have_finite_first_and_second_derivatives(name: str, dtype: torch.dtype) -> None:
    start = normal(NUM_ADVERSARIES, NUM_VARIABLES, dtype=dtype).requires_grad_()
    first = torch.autograd.grad(unrolled(name, start, 3).square().sum(), start, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), start)[0]
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert first[:, :NUM_STILL].abs().min() > 0


def assert_same_meta_gradient(name: str, start: Tensor, params: Tensor, num_steps: int, tolerance: float) -> None:
    """What another package reached from `start`, and its derivative, are ours."""
    moved = unrolled(name, start, num_steps)
    torch.testing.assert_close(moved, params, rtol=tolerance, atol=tolerance)
    actual, expected = (torch.autograd.grad(loss_of(value), start)[0] for value in (moved, params))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_meta_gradient_is_that_of_higher(name: str) -> None:
    start = normal(NUM_ADVERSARIES, NUM_VARIABLES).requires_grad_()
    optimizer = higher.optim.get_diff_optim(REFERENCES[name]([{"params": [start]}]), [start])
    params: Tensor = start
    for count in range(1, 5):
        # It adds eps before the bias correction; this eps gives it the update of torch.optim.Adam.
        eps = {"eps": [ADAM_EPS * math.sqrt(1 - 0.999**count)]} if name == "adam" else None
        (params,) = optimizer.step(loss_of(params), params=[params], override=eps)
    assert_same_meta_gradient(name, start, params, 4, 1e-8)


@pytest.mark.parametrize(
    ("name", "optimizer", "tolerance"),
    [
        ("sgd", torchopt.sgd(0.01), 1e-8),
        ("momentum", torchopt.sgd(0.01, momentum=0.9), 1e-8),
        # Its bias correction is float32, and it has no derivative where the second moment is 0 but for an offset.
        ("adam", torchopt.adam(0.01, eps_root=1e-24), 1e-4),
    ],
)
def test_meta_gradient_is_that_of_torchopt(
    name: str, optimizer: torchopt.base.GradientTransformation, tolerance: float
) -> None:
    start = normal(NUM_ADVERSARIES, NUM_VARIABLES).requires_grad_()
    params: Tensor = start
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(gradient(params, create_graph=True), state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    assert_same_meta_gradient(name, start, params, 4, tolerance)


def test_an_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'lion'; known: sgd, momentum, adam, adamw, rmsprop$"):
        make_optimizer("lion")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_safe_root_is_the_root_and_flat_at_zero(dtype: torch.dtype) -> None:
    value = torch.tensor([0.0, 1e-30, 0.25, 4.0], dtype=dtype, requires_grad=True)
    root = safe_sqrt(value)
    (slope,) = torch.autograd.grad(root.sum(), value)
    assert 0 <= float(root.detach()[0]) < 1e-18
    torch.testing.assert_close(root[1:], value[1:].sqrt())
    assert float(slope[0]) == 0
    torch.testing.assert_close(slope[1:], 0.5 / value[1:].sqrt())


def rows_to_clip(seed: int = 0) -> Tensor:
    """Gradients (6, N) of norms 0, 0.001, 0.7, 1.4, 70, 10000."""
    norms = torch.tensor([0.0, 1e-3, 0.7, 1.4, 70.0, 1e4], dtype=torch.float64)
    return torch.nn.functional.normalize(normal(6, NUM_VARIABLES, seed=seed), dim=-1) * norms[:, None]


def test_clipping_is_that_of_torch_row_by_row() -> None:
    grads = rows_to_clip()
    for row, clipped in zip(grads, clip_by_norm(grads, 1.0), strict=True):
        reference = torch.nn.Parameter(torch.zeros_like(row))
        reference.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([reference], 1.0)
        torch.testing.assert_close(clipped, reference.grad, rtol=1e-12, atol=0)


@few_examples
@given(seed=seeds, max_norm=st.sampled_from([1e-9, 1e-3, 0.4, 1.0, 100.0]))
def test_clip_adjoint_is_autograd_s(seed: int, max_norm: float) -> None:
    grads = rows_to_clip(seed).requires_grad_()
    cotangents = normal(NUM_COTANGENTS, *grads.shape, seed=seed + 1)
    clipped = clip_by_norm(grads, max_norm)
    expected = torch.stack([torch.autograd.grad(clipped, grads, row, retain_graph=True)[0] for row in cotangents])
    torch.testing.assert_close(clip_adjoint(cotangents, grads.detach(), max_norm), expected, rtol=1e-10, atol=1e-10)


def test_clip_adjoint_takes_autograd_s_side_where_clipping_begins() -> None:
    grads = torch.tensor([[1 - 1e-6]], dtype=torch.float64, requires_grad=True)
    assert float((1.0 / (grads.abs() + 1e-6)).detach()) == 1
    cotangent = torch.ones_like(grads)
    (expected,) = torch.autograd.grad(clip_by_norm(grads, 1.0), grads, cotangent)
    torch.testing.assert_close(clip_adjoint(cotangent[None], grads.detach(), 1.0)[0], expected, rtol=0, atol=1e-12)
    assert float(expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_passes_cotangents_of_a_zero_gradient_unchanged(dtype: torch.dtype) -> None:
    grads = torch.zeros(1, NUM_VARIABLES, dtype=dtype, requires_grad=True)
    cotangent = normal(1, NUM_VARIABLES, dtype=dtype)
    assert torch.equal(torch.autograd.grad(clip_by_norm(grads, 1.0), grads, cotangent)[0], cotangent)
    assert torch.equal(clip_adjoint(cotangent[None], grads.detach(), 1.0)[0], cotangent)


@pytest.mark.parametrize("num_steps", [0, 1, 3, 10, 40])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rate_factors_stay_in_range_and_reach_one(schedule: str, num_steps: int) -> None:
    factors = rate_factors(schedule, num_steps)
    assert len(factors) == num_steps
    assert all(0 < factor <= 1 for factor in factors)
    if num_steps:
        assert factors[max(1, round(num_steps / 10)) - 1] == 1


def test_rate_factors_follow_their_schedule() -> None:
    rise = [0.25, 0.5, 0.75, 1.0]
    assert rate_factors("constant", 3) == (1.0, 1.0, 1.0)
    assert rate_factors("warmup", 40) == pytest.approx(rise + [1.0] * 36)
    assert rate_factors("linear", 40) == pytest.approx(rise + [1 - step / 37 for step in range(1, 37)])
    cosine = [0.5 + 0.5 * math.cos(math.pi * step / 37) for step in range(1, 37)]
    assert rate_factors("cosine", 40) == pytest.approx(rise + cosine)
    assert rate_factors("linear", 3) == pytest.approx((1, 2 / 3, 1 / 3))
    assert rate_factors("cosine", 3) == pytest.approx((1, 0.75, 0.25))


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'step'; known: constant, warmup, linear, cosine$"):
        rate_factors("step", 4)
