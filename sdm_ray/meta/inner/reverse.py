"""Meta-gradients by a rollout and a backward pass step by step: what `adjoint`, `truncated` and `first_order` share.

The trunk descends the blocking loss; the adversaries' heads and learning rates descend the adversaries' own loss. Both
are vector-Jacobian products of one loop: the second cotangent is left out where it is a multiple of the first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.inner.cotangents import OutputCotangents, StartCotangents
from sdm_ray.meta.inner.prepared import LoopGradients, PreparedEpisode
from sdm_ray.meta.inner.problems import Base
from sdm_ray.meta.inner.readout import StackedOutputs, own_loss, read_terms


class _Seeds(NamedTuple):
    """The cotangents that the backward pass starts with; the first is that of the blocking loss."""

    cotangents: OutputCotangents
    own: int
    """Index of the cotangent that gives the gradients of heads and learning rates."""
    factor: float = 1.0
    """Factor of those gradients."""


def differentiate_backward(
    episode: PreparedEpisode, *, num_differentiated: int, keep_graphs: bool = False
) -> LoopGradients:
    """Roll the episode out and differentiate it backward.

    Args:
        episode: what the adversaries do.
        num_differentiated: number of last updates that the gradients pass through.
        keep_graphs: keep the graphs of those updates instead of computing them again.
    """
    with torch.enable_grad():
        variables, base = episode.begin()
    loop = episode.inner_loop(base, num_differentiated=num_differentiated, keep_graphs=keep_graphs)
    rollout = loop.roll_out(variables, episode.start.state)
    outputs = StackedOutputs.of(rollout.outputs, episode.evaluated).leaves()
    total, values = read_terms(episode.readout, outputs)
    seeds = _seeds(episode, outputs, total)
    weights = [episode.gradient_weight if index == 0 else 0.0 for index in range(len(seeds.cotangents))]
    found = loop.backward(seeds.cotangents, weights)
    trunk, head = _start_gradients(episode, variables, base, found, seeds)
    rate = None
    if episode.start.log_learning_rate.requires_grad and episode.num_steps:
        rate = found.log_learning_rate[seeds.own] * seeds.factor
    return LoopGradients(
        trunk=trunk,
        head=head,
        log_learning_rate=rate,
        outputs=outputs,
        values=values | episode.gradient_value(rollout.gradient_values),
        final=rollout.final,
        final_state=rollout.final_state,
    )


def _seeds(episode: PreparedEpisode, outputs: StackedOutputs, total: Tensor) -> _Seeds:
    blocking = outputs.cotangents(_gradients(total, outputs.tensors()))
    if not episode.learns or episode.adapts_to_desired:
        return _Seeds([blocking], own=0)
    if (ratio := _constant_ratio(episode)) is not None:
        return _Seeds([blocking], own=0, factor=1.0 / ratio)
    own = outputs.cotangents(_gradients(own_loss(episode.readout, outputs), outputs.tensors()))
    return _Seeds([blocking, own], own=1)


def _constant_ratio(episode: PreparedEpisode) -> float | None:
    """The blocking loss over the adversaries' own loss, where the one is a multiple of the other."""
    own = {"harmful_adapted", "harmful_base"} if episode.evaluated == (0,) else {"harmful_adapted"}
    weights = episode.readout.weights
    return -sum(weights.values()) if set(weights) <= own else None


def _start_gradients(
    episode: PreparedEpisode, variables: Tensor, base: Base, found: StartCotangents, seeds: _Seeds
) -> tuple[Tensor, Tensor | None]:
    """From cotangents of variables and base to the gradients of trunk and heads."""
    start = episode.start
    differentiable = [(value, index) for index, value in enumerate((variables, *base)) if value.requires_grad]

    def gradient(which: int, leaf: Tensor, *, retain: bool) -> Tensor:
        cotangents = (found.variables[which], *(value[which] for value in found.base))
        (result,) = torch.autograd.grad(
            [value for value, _ in differentiable],
            leaf,
            [cotangents[index] for _, index in differentiable],
            retain_graph=retain,
            materialize_grads=True,
        )
        return result

    trunk = gradient(0, start.trunk, retain=start.head.requires_grad)
    if not start.head.requires_grad:
        return trunk, None
    return trunk, gradient(seeds.own, start.head, retain=False) * seeds.factor


def _gradients(value: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(leaves)
    return list(torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True))
