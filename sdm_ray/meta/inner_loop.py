"""The inner loop: an adversary's K steps, and the meta-gradients through them.

Trunk and adversary pull at the same trajectory in different directions: the trunk descends the (calibrated) blocking
loss, the adversary's head and learning rate descend the adversary's own uncalibrated loss. Both are vector-Jacobian
products of one unroll, which is built once; only where the two cotangents differ is it walked back twice.

Modes: `unrolled` differentiates through the inner updates (MLAC, arXiv 2211.14946). `first_order` treats every update
as a constant displacement, so that the gradient at each adapted model is applied to the model it started from (as
TAR, arXiv 2408.00761); a head's gradient is then the adapted head's own, and the learning rate's is the displacement
times the gradient there.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.functional import FlatModel
from sdm_ray.meta.objectives import Trajectory, blocking_loss, step_losses
from sdm_ray.meta.optim import Tensors, clip_by_norm, make_optimizer
from sdm_ray.models.heads import logits
from sdm_ray.types import Batch

GradientMode = Literal["unrolled", "first_order"]

FROZEN_RATE_FACTOR = 10.0
"""An adversary that trains the head alone does it at this many times its learning rate."""


class Start(NamedTuple):
    """Where an adversary starts. Meta-gradients are taken with respect to those of its tensors that require them."""

    trunk: Tensor
    """(P,) flat trunk parameters."""
    head: Tensor
    """(C, D) harmful head."""
    log_learning_rate: Tensor
    """0-d natural logarithm of the learning rate."""


class Episode(NamedTuple):
    """One simulated adversary's data and habits."""

    inner: Batch | None
    """(K, B, L) batches that it trains on; None where K = 0."""
    outer: Batch
    """(B, L) the batch that it is watched on."""
    optimizer: str
    """Inner optimiser."""
    frozen: bool
    """Whether it trains the head alone."""
    gradient_clip: float
    """Norm that inner gradients are clipped to."""
    mode: GradientMode
    """How meta-gradients pass the inner loop."""


class MetaGradients(NamedTuple):
    """What an episode asks of the outer step."""

    trunk: Tensor
    """(P,) gradient of the blocking loss."""
    head: Tensor | None
    """(C, D) gradient of the adversary's own loss; None where the start's head takes none."""
    log_learning_rate: Tensor | None
    """0-d, likewise."""
    values: dict[str, Tensor]
    """Blocking terms by name."""
    trajectory: Trajectory
    """Detached."""


def meta_gradients(model: FlatModel, start: Start, episode: Episode, weights: dict[str, float]) -> MetaGradients:
    """Simulate one adversary and take both meta-gradients.

    Args:
        model: the trunk as a function.
        start: leaves; the trunk requires gradients, head and learning rate where they are meta-learned.
        episode: what the adversary does.
        weights: blocking terms and their weights.
    """
    outputs = unroll(model, start, episode)
    trajectory = Trajectory(outputs.detach().requires_grad_(), episode.outer.labels)
    blocking, values = blocking_loss(trajectory, weights)
    (trunk_cotangent,) = torch.autograd.grad(blocking, trajectory.logits)
    (own_cotangent,) = torch.autograd.grad(step_losses(trajectory).mean(), trajectory.logits)
    learned = {name: value for name, value in _adversary(start).items() if value.requires_grad}
    ratio = _constant_ratio(weights, len(outputs))
    if learned and ratio is not None:
        trunk, *rest = torch.autograd.grad(outputs, [start.trunk, *learned.values()], own_cotangent, allow_unused=True)
        trunk = trunk * ratio
    else:
        (trunk,) = torch.autograd.grad(outputs, start.trunk, trunk_cotangent, retain_graph=bool(learned))
        rest = _products(outputs, list(learned.values()), own_cotangent)
    own = dict(zip(learned, rest, strict=True))
    seen = Trajectory(trajectory.logits.detach(), trajectory.labels)
    return MetaGradients(trunk, own.get("head"), own.get("log_learning_rate"), values, seen)


def unroll(model: FlatModel, start: Start, episode: Episode) -> Tensor:
    """The adversary's scores (K+1, B, C) on the outer batch, connected to `start` as the episode's mode says."""
    if episode.frozen:
        return _unroll_head(model, start, episode)
    num_steps = 0 if episode.inner is None else len(episode.inner.labels)
    optimizer = make_optimizer(episode.optimizer)
    exact = episode.mode == "unrolled"
    rate = start.log_learning_rate.exp()
    params: Tensors = tuple(_differentiable(value, exact) for value in (start.trunk, start.head))
    state = optimizer.init(tuple(value.detach() for value in params))
    outputs = [model.logits(start.trunk, start.head, episode.outer)]
    for step in range(num_steps):
        batch = Batch(*(value[step] for value in episode.inner or ()))
        loss = F.cross_entropy(model.logits(params[0], params[1], batch), batch.labels)
        grads = torch.autograd.grad(loss, params, create_graph=exact)
        grads = clip_by_norm(grads, episode.gradient_clip)
        with torch.set_grad_enabled(exact):
            params, state = optimizer.update(grads, state, params, rate if exact else rate.detach())
        if not exact:
            params = tuple(value.requires_grad_() for value in params)
        trunk, head = params if exact else _displaced(params, start, rate)
        outputs.append(model.logits(trunk, head, episode.outer))
    return torch.stack(outputs)


def _unroll_head(model: FlatModel, start: Start, episode: Episode) -> Tensor:
    """The trunk stands still, so all inner batches pass through it once, and the loop runs on features."""
    exact = episode.mode == "unrolled"
    optimizer = make_optimizer(episode.optimizer)
    rate = start.log_learning_rate.exp() * FROZEN_RATE_FACTOR
    outer = model.features(start.trunk, episode.outer)
    outputs = [logits(outer, start.head)]
    if episode.inner is None:
        return torch.stack(outputs)
    with torch.set_grad_enabled(exact):
        features = model.features(start.trunk, episode.inner)
    head = _differentiable(start.head, exact)
    state = optimizer.init((head.detach(),))
    for inputs, labels in zip(features, episode.inner.labels, strict=True):
        loss = F.cross_entropy(logits(inputs, head), labels)
        grads = clip_by_norm(torch.autograd.grad(loss, (head,), create_graph=exact), episode.gradient_clip)
        with torch.set_grad_enabled(exact):
            (head,), state = optimizer.update(grads, state, (head,), rate if exact else rate.detach())
        if not exact:
            head.requires_grad_()
        outputs.append(logits(outer, head if exact else _displace(head, start.head, rate)))
    return torch.stack(outputs)


def _adversary(start: Start) -> dict[str, Tensor]:
    return {"head": start.head, "log_learning_rate": start.log_learning_rate}


def _products(outputs: Tensor, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, inputs, cotangent, allow_unused=True)) if inputs else []


def _differentiable(value: Tensor, exact: bool) -> Tensor:
    """The value itself where the meta-gradient passes through it, else a leaf of its own."""
    return value if exact and value.requires_grad else value.detach().requires_grad_()


def _displaced(params: Tensors, start: Start, rate: Tensor) -> Tensors:
    return _displace(params[0], start.trunk, rate), _displace(params[1], start.head, rate)


def _displace(adapted: Tensor, start: Tensor, rate: Tensor) -> Tensor:
    """`adapted` as the start plus a constant direction times the learning rate: the first-order view of an update."""
    direction = (adapted.detach() - start.detach()) / rate.detach()
    return start + rate * direction


def _constant_ratio(weights: dict[str, float], num_outputs: int) -> float | None:
    """The blocking loss over the adversary's own loss, where the one is a multiple of the other."""
    own = {"harmful_adapted", "harmful_base"} if num_outputs == 1 else {"harmful_adapted"}
    return -sum(weights.values()) if set(weights) <= own else None
