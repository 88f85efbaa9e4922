"""The exact meta-gradient, by autograd through the whole loop (as MLAC, arXiv 2211.14946): the reference.

- Memory: the graphs of all K steps and of every evaluated step at once.
- Time: K gradients forward with their graphs, and two backward passes through everything (trunk; head and rate).

Shortcomings: memory grows with K, and it is the strategy that takes most of it. No compiled step functions, no
reduced precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.inner.episode import Start
from sdm_ray.meta.inner.optim import OptimizerState, clip_by_norm
from sdm_ray.meta.inner.prepared import LoopGradients, PreparedEpisode
from sdm_ray.meta.inner.problems import Base
from sdm_ray.meta.inner.readout import StackedOutputs, own_loss, read_terms
from sdm_ray.meta.inner.rollout import Rollout


def unrolled(episode: PreparedEpisode) -> LoopGradients:
    """Exact gradients, by autograd through the whole loop."""
    start = episode.start
    with torch.enable_grad():
        rollout = _roll_out(episode, *episode.begin())
        outputs = StackedOutputs.of(rollout.outputs, episode.evaluated)
        total, values = read_terms(episode.readout, outputs)
        if rollout.gradient_values:
            total = total + episode.gradient_weight * torch.stack(rollout.gradient_values).mean()
        (trunk,) = torch.autograd.grad(total, start.trunk, retain_graph=True, materialize_grads=True)
        own = total if episode.adapts_to_desired else own_loss(episode.readout, outputs)
        head, rate = _learned_gradients(own, start, episode.num_steps)
    state = rollout.final_state
    return LoopGradients(
        trunk=trunk,
        head=head,
        log_learning_rate=rate,
        outputs=outputs,
        values=values | episode.gradient_value(rollout.gradient_values),
        final=rollout.final,
        final_state=OptimizerState(state.num_updates, tuple(value.detach() for value in state.moments)),
    )


def _roll_out(episode: PreparedEpisode, variables: Tensor, base: Base) -> Rollout:
    """All steps, nothing detached."""
    problem, data, gradient_function = episode.problem, episode.episode.data, episode.gradient_function
    rule = episode.update_rule(episode.start.log_learning_rate)
    state = episode.start.state or rule.optimizer.init(variables.detach())
    outputs, values = [], []
    if not variables.requires_grad:
        variables = variables.requires_grad_()
    for step in range(episode.num_steps + 1):
        if step in episode.evaluated:
            outputs.append(problem.outputs(base, variables, data))
        if step == episode.num_steps:
            break
        losses = problem.inner_loss(base, variables, data, step)
        (gradient,) = torch.autograd.grad(losses.sum(), variables, create_graph=True)
        if gradient_function is not None:
            values.append(gradient_function(gradient))
        clipped = clip_by_norm(gradient, rule.gradient_clip)
        variables, state = rule.optimizer.update(clipped, state, variables, rule.rate_at(step))
    return Rollout(tuple(outputs), variables, state, tuple(values))


def _learned_gradients(own: Tensor, start: Start, num_steps: int) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of heads and logarithms of learning rates, each None where it is not learned."""
    wanted = {
        "head": start.head if start.head.requires_grad else None,
        "rate": start.log_learning_rate if start.log_learning_rate.requires_grad and num_steps else None,
    }
    leaves = {name: value for name, value in wanted.items() if value is not None}
    if not leaves:
        return None, None
    found = torch.autograd.grad(own, list(leaves.values()), materialize_grads=True)
    by_name = dict(zip(leaves, found, strict=True))
    return by_name.get("head"), by_name.get("rate")
