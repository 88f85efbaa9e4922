"""Meta-gradients: against finite differences, against `higher` and `torchopt`, and against hand-written references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdm_ray.meta.functional import FlatModel
from sdm_ray.meta.inner_loop import FROZEN_RATE_FACTOR, Episode, MetaGradients, Start, meta_gradients, unroll
from sdm_ray.meta.objectives import Trajectory, blocking_loss, step_losses
from sdm_ray.meta.optim import ADAM_EPS
from sdm_ray.types import Batch
from tests.meta_fakes import MlpTrunk, NoHostSync, bert_trunk, episode_of, start_of

WEIGHTS = {"harmful_adapted_calibrated": 1.0, "harmful_base": 0.3}


@pytest.fixture(params=["mlp", "bert"])
def trunk(request: pytest.FixtureRequest, bert_folder: Path) -> Any:
    return MlpTrunk() if request.param == "mlp" else bert_trunk(bert_folder)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def step_of(inner: Batch, index: int) -> Batch:
    return Batch(*(value[index] for value in inner))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd"},
        {"optimizer": "momentum"},
        {"frozen": True},
        {"frozen": True, "optimizer": "momentum"},
        {"optimizer": "sgd", "gradient_clip": 0.2},
        {"inner": None},
    ],
    ids=str,
)
def test_unrolled_equals_finite_differences(trunk: Any, changes: dict[str, Any]) -> None:
    model, episode = FlatModel(trunk), episode_of(**changes)
    start = start_of(model)
    ours = meta_gradients(model, start, episode, WEIGHTS)

    def losses(moved: Start) -> tuple[float, float]:
        trajectory = Trajectory(unroll(model, moved, episode).detach(), episode.outer.labels)
        return blocking_loss(trajectory, WEIGHTS)[0].item(), step_losses(trajectory).mean().item()

    gradients = {"trunk": ours.trunk, "head": ours.head, "log_learning_rate": ours.log_learning_rate}
    for position, (name, gradient) in enumerate(gradients.items()):
        if gradient is None:
            assert name == "log_learning_rate"
            assert episode.inner is None
            continue
        # Along the gradient, so that embedding rows that do not occur, where Adam's slope is a definition, stay put.
        direction = gradient / gradient.norm()
        size = 1e-5
        ends = [
            losses(start._replace(**{name: (start[position] + sign * size * direction).detach().requires_grad_()}))
            for sign in (1, -1)
        ]
        which = 0 if name == "trunk" else 1
        expected = (ends[0][which] - ends[1][which]) / (2 * size)
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=2e-4)


class Joint(nn.Module):
    """Trunk and head as one module, as other packages want it."""

    def __init__(self, trunk: Any, head: Tensor) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Parameter(head.detach().clone())

    def forward(self, batch: Batch) -> Tensor:
        return self.trunk(batch.input_ids, batch.attention_mask) @ self.head.T


def flat_gradients(joint: Joint) -> tuple[Tensor, Tensor]:
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in joint.trunk.parameters()]
    assert joint.head.grad is not None
    return torch.cat([g.reshape(-1) for g in grads]), joint.head.grad


@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 1e-8), ("momentum", 1e-8), ("adam", 1e-8)])
def test_unrolled_equals_higher(trunk: Any, optimizer: str, tolerance: float) -> None:
    import higher

    rate, episode = 0.01, episode_of(optimizer=optimizer)
    model = FlatModel(trunk)
    start = start_of(model, rate=rate)
    ours = meta_gradients(model, start, episode, {"harmful_adapted": -1.0})
    joint = Joint(trunk, start.head)
    outer = {
        "sgd": lambda p: torch.optim.SGD(p, rate),
        "momentum": lambda p: torch.optim.SGD(p, rate, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, rate),
    }[optimizer](joint.parameters())
    assert episode.inner is not None
    with higher.innerloop_ctx(joint, outer, copy_initial_weights=False) as (functional, inner_optimizer):
        outputs = [functional(episode.outer)]
        for index in range(3):
            batch = step_of(episode.inner, index)
            # `higher` adds eps before the bias correction; this eps gives it the update of torch.optim.Adam.
            eps = {"eps": [ADAM_EPS * math.sqrt(1 - 0.999 ** (index + 1))]} if optimizer == "adam" else None
            inner_optimizer.step(F.cross_entropy(functional(batch), batch.labels), override=eps)
            outputs.append(functional(episode.outer))
        torch.stack([F.cross_entropy(z, episode.outer.labels) for z in outputs]).mean().backward()
    theirs = flat_gradients(joint)
    torch.testing.assert_close(ours.trajectory.logits, torch.stack(outputs).detach(), rtol=0, atol=1e-10)
    assert relative(ours.trunk, theirs[0]) < tolerance
    assert ours.head is not None
    assert relative(ours.head, theirs[1]) < tolerance


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_unrolled_equals_torchopt(trunk: Any) -> None:
    import torchopt

    rate, episode = 0.01, episode_of()
    model = FlatModel(trunk)
    start = start_of(model, rate=rate)
    ours = meta_gradients(model, start, episode, {"harmful_adapted": -1.0})
    flat, head = start.trunk.detach().clone().requires_grad_(), start.head.detach().clone().requires_grad_()
    # Its bias correction is float32, and without eps_root its derivative is NaN where the second moment is 0.
    adam = torchopt.adam(rate, eps_root=1e-24, moment_requires_grad=False)
    params: tuple[Tensor, ...] = (flat, head)
    state = adam.init(params)
    outputs = [model.logits(*params, episode.outer)]
    assert episode.inner is not None
    for index in range(3):
        batch = step_of(episode.inner, index)
        grads = torch.autograd.grad(
            F.cross_entropy(model.logits(*params, batch), batch.labels), params, create_graph=True
        )
        updates, state = adam.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        outputs.append(model.logits(*params, episode.outer))
    loss = torch.stack([F.cross_entropy(z, episode.outer.labels) for z in outputs]).mean()
    theirs = torch.autograd.grad(loss, (flat, head))
    assert relative(ours.trunk, theirs[0]) < 1e-4
    assert ours.head is not None
    assert relative(ours.head, theirs[1]) < 1e-4


def first_order_reference(model: FlatModel, start: Start, episode: Episode, frozen: bool) -> list[Tensor]:
    """torch.optim steps on copies; the gradients at every adapted model are added up."""
    trunk, head = start.trunk.detach().clone().requires_grad_(), start.head.detach().clone().requires_grad_()
    params = [head] if frozen else [trunk, head]
    rate = math.exp(start.log_learning_rate.item()) * (FROZEN_RATE_FACTOR if frozen else 1)
    adam = torch.optim.Adam(params, rate)
    points = [(trunk.detach().clone(), head.detach().clone())]
    assert episode.inner is not None
    for index in range(3):
        adam.zero_grad()
        batch = step_of(episode.inner, index)
        F.cross_entropy(model.logits(trunk, head, batch), batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(params, episode.gradient_clip)
        adam.step()
        points.append((trunk.detach().clone(), head.detach().clone()))
    totals = [torch.zeros_like(value) for value in start]
    for theta, w in points:
        theta.requires_grad_(), w.requires_grad_()
        trajectory = Trajectory(model.logits(theta, w, episode.outer).unsqueeze(0), episode.outer.labels)
        blocking, _ = blocking_loss(trajectory, {"harmful_adapted_calibrated": 1.0})
        (up,) = torch.autograd.grad(blocking, theta, retain_graph=True)
        own = torch.autograd.grad(step_losses(trajectory).sum(), (theta, w))
        totals[0] += up / 4
        totals[1] += own[1] / 4
        slope = ((w.detach() - points[0][1]) * own[1]).sum() + ((theta.detach() - points[0][0]) * own[0]).sum()
        totals[2] += slope / 4
    return totals


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("clip", [100.0, 0.1])
def test_first_order_applies_the_gradients_at_the_adapted_models(trunk: Any, frozen: bool, clip: float) -> None:
    model = FlatModel(trunk)
    start, episode = start_of(model), episode_of(mode="first_order", frozen=frozen, gradient_clip=clip)
    ours = meta_gradients(model, start, episode, {"harmful_adapted_calibrated": 1.0})
    expected = first_order_reference(model, start, episode, frozen)
    for mine, theirs in zip((ours.trunk, ours.head, ours.log_learning_rate), expected, strict=True):
        assert mine is not None
        assert relative(mine, theirs) < 1e-8


def run(**changes: Any) -> MetaGradients:
    model = FlatModel(MlpTrunk())
    return meta_gradients(model, start_of(model), episode_of(**changes), WEIGHTS)


def test_modes_agree_on_the_trajectory_but_not_on_the_gradient() -> None:
    exact, first = run(), run(mode="first_order")
    torch.testing.assert_close(exact.trajectory.logits, first.trajectory.logits, rtol=1e-10, atol=1e-12)
    assert relative(first.trunk, exact.trunk) > 0.01


def test_without_inner_steps_the_modes_agree() -> None:
    torch.testing.assert_close(run(inner=None).trunk, run(inner=None, mode="first_order").trunk)


def test_the_clip_is_active() -> None:
    clipped, free = run(gradient_clip=1e-3, optimizer="sgd"), run(optimizer="sgd")
    assert (clipped.trajectory.logits[-1] - clipped.trajectory.logits[0]).abs().max() < 1e-2
    assert not torch.allclose(clipped.trajectory.logits, free.trajectory.logits)


def test_a_frozen_adversary_moves_the_head_alone_at_ten_times_the_rate() -> None:
    model, episode = FlatModel(MlpTrunk()), episode_of(frozen=True, optimizer="sgd")
    start = start_of(model, rate=0.05)
    outputs = unroll(model, start, episode)
    head = start.head.detach().clone().requires_grad_()
    assert episode.inner is not None
    batch = step_of(episode.inner, 0)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model.logits(start.trunk, head, batch), batch.labels), head)
    expected = model.logits(start.trunk, head - 0.5 * gradient, episode.outer)
    torch.testing.assert_close(outputs[1], expected)


def test_trunk_and_adversary_follow_different_losses() -> None:
    """The adversary's gradients do not depend on the blocking term; the trunk's do."""
    model, episode = FlatModel(MlpTrunk()), episode_of()
    start = start_of(model)
    calibrated = meta_gradients(model, start, episode, {"harmful_adapted_calibrated": 1.0})
    clamped = meta_gradients(model, start, episode, {"harmful_adapted_clamped": 1.0})
    assert relative(calibrated.trunk, clamped.trunk) > 0.01
    for name in ("head", "log_learning_rate"):
        torch.testing.assert_close(getattr(calibrated, name), getattr(clamped, name))


@pytest.mark.parametrize("inner", [True, False])
def test_one_backward_pass_serves_both_where_the_losses_are_proportional(inner: bool) -> None:
    model = FlatModel(MlpTrunk())
    episode = episode_of() if inner else episode_of(inner=None)
    start = start_of(model)
    once = meta_gradients(model, start, episode, {"harmful_adapted": 0.7})
    # A vanishing second term forces the general way.
    twice = meta_gradients(model, start, episode, {"harmful_adapted": 0.7, "harmful_adapted_clamped": 1e-300})
    torch.testing.assert_close(once.trunk, twice.trunk)
    torch.testing.assert_close(once.head, twice.head)


@pytest.mark.parametrize("mode", ["unrolled", "first_order"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_fresh_head_and_a_drawn_rate_take_no_gradient(mode: str, frozen: bool) -> None:
    model = FlatModel(MlpTrunk())
    learned, fixed = start_of(model), start_of(model, learned=False)
    episode = episode_of(mode=mode, frozen=frozen)
    ours = meta_gradients(model, fixed, episode, WEIGHTS)
    assert ours.head is None
    assert ours.log_learning_rate is None
    torch.testing.assert_close(ours.trunk, meta_gradients(model, learned, episode, WEIGHTS).trunk)


@pytest.mark.parametrize("mode", ["unrolled", "first_order"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_inner_loop_never_waits_for_the_device(mode: str, frozen: bool) -> None:
    model, episode = FlatModel(MlpTrunk()), episode_of(mode=mode, frozen=frozen)
    start = start_of(model)
    with NoHostSync():
        meta_gradients(model, start, episode, WEIGHTS)
