"""Training of a stack of attackers: parameters are stacked along a leading dimension, with one forward and backward.

The forward pass is `vmap` of `functional_call`. The attackers share no trained parameter, so the gradient of the sum of
their losses is the stack of their gradients. Frozen parameters (blocks below a depth, everything except low-rank
factors) are shared. Attackers are sorted by number of steps, longest first, so that those that still train are a prefix
of the stack, which is a view.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sdm_ray.attack.engine.graphs import RECORDERS, Replaying
from sdm_ray.attack.engine.optim import OPTIMIZERS, narrow, narrow_state
from sdm_ray.attack.engine.plan import Plan
from sdm_ray.attack.engine.rows import Rows
from sdm_ray.attack.engine.scoring import ScoringSet, tight_batch
from sdm_ray.core.types import Batch, Params, Task
from sdm_ray.models.heads import logits
from sdm_ray.models.packing import token_places

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

HEAD = "attack.head"
"""Name of the head among the stacked parameters."""
STEPS_PER_TRANSFER = {"cpu": 1, "cuda": 32}
"""Number of steps whose batches are gathered at once: on a GPU few transfers are faster, on a CPU less padding is."""
PACKING_SHARE = 0.9
"""Texts are packed if their tokens are fewer than this fraction of the padded size."""
TOKEN_MULTIPLE = {"cpu": 1, "cuda": 64}
"""The number of packed tokens is rounded up to a multiple of this, so that few shapes occur."""
ATTACKERS_PER_SCORING = {"cpu": 1, "cuda": 16}
"""Number of attackers that are scored at once. On a CPU one at a time is faster, because its weights stay in the
cache."""
STACK_SIZES = {"cpu": 0, "cuda": 8}
"""Number of different sizes of a shrinking stack (0: any). Fewer sizes need fewer CUDA graphs; finished attackers stay
in the stack until the next size."""


@dataclass(frozen=True)
class Model:
    """The module that is fine-tuned, and its parameters."""

    module: nn.Module
    """The architecture: features (B, D) from token ids and mask (B, L)."""
    shared: Params
    """Frozen parameters."""
    start: Params
    """Initial values of the trained parameters; every attacker gets a copy."""
    own: Params = field(default_factory=dict)
    """(S, ...) further trained parameters, whose initial values differ between attackers."""
    embedding: str | None = None
    """Name of the token embedding, if it is in `start`."""
    fixed_ids: int = 0
    """Token ids below this keep their rows when the embedding is restricted."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the module."""
    starts: tuple[Params, ...] = ()
    """Initial values of each attacker, with the names of `start`, if attackers start from different weights."""
    packs: bool = False
    """Whether the module accepts token positions, so that almost nothing is computed for padding."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(iter((self.shared or self.start).values())).device

    def stacked(self, name: str, size: int) -> Tensor:
        """(S, ...) a new tensor with the initial values of parameter `name` for each of S attackers."""
        if self.starts:
            return torch.stack([start[name].detach() for start in self.starts])
        value = self.start[name].detach()
        return value.expand(size, *value.shape).clone()

    def tables(self, attackers: slice) -> Tensor:
        """(V, D) initial token embedding if all attackers share it, else (S', V, D) those of a slice of attackers."""
        assert self.embedding is not None
        if self.starts:
            return torch.stack([start[self.embedding].detach() for start in self.starts[attackers]])
        return self.start[self.embedding].detach()


class Trained:
    """Parameters of a plan's attackers, during or after training."""

    def __init__(self, model: Model, stacked: Params, rows: Rows | None) -> None:
        self._model, self._stacked, self._rows = model, stacked, rows

    def finite(self) -> Tensor:
        """(S,) whether all parameters of an attacker are finite."""
        return torch.stack([value.flatten(1).abs().amax(1) for value in self._stacked.values()]).isfinite().all(0)

    def params(self, attackers: slice) -> tuple[Params, Tensor]:
        """Stacked parameters of some attackers, with full embeddings, and their heads (S', C, D)."""
        chosen = {name: value[attackers] for name, value in self._stacked.items()}
        head = chosen.pop(HEAD)
        name = self._model.embedding
        if self._rows is not None and name is not None:
            chosen[name] = self._rows.restore(self._model.tables(attackers), chosen[name], attackers)
        return chosen, head

    def logits(self, examples: ScoringSet, head: Tensor | None = None) -> Tensor:
        """(S, N, C) logits on the host, in the order of `examples`.

        Args:
            examples: the examples to score.
            head: (C, D) head that replaces the attackers' own heads; None uses theirs.
        """
        total, device = len(self._stacked[HEAD]), self._stacked[HEAD].device
        group = by_device(ATTACKERS_PER_SCORING, device)
        parts = [self.logits_of(slice(i, min(i + group, total)), examples, head) for i in range(0, total, group)]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def logits_of(self, attackers: slice, examples: ScoringSet, other_head: Tensor | None = None) -> Tensor:
        """(S', N, C) logits of some attackers, on the device; arguments as in `logits`."""
        params, head = self.params(attackers)
        if other_head is not None:
            head = other_head.to(head).expand(len(head), *other_head.shape)
        module, shared, options = self._model.module, self._model.shared, self._model.options
        if len(head) == 1:
            single = shared | {name: value[0] for name, value in params.items()}
            return torch.cat(
                [logits(functional_call(module, single, batch.inputs, options), head[0]) for batch in examples.batches]
            )[None]

        def features(params: Params, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            result: Tensor = functional_call(module, shared | params, (input_ids, attention_mask), options)
            return result

        forward = vmap(features, in_dims=(0, None, None))
        return torch.cat([logits(forward(params, *batch.inputs), head) for batch in examples.batches], dim=1)


@dataclass(frozen=True)
class Curves:
    """Training losses of a plan's attackers, and their logits at evaluated steps."""

    losses: Tensor
    """(T, S) training losses of every step, on the host; 0 once an attacker has finished."""
    scored: tuple[tuple[Tensor, ...], ...]
    """Logits (N, C) of each attacker at its evaluated steps, on the host."""


def train_stack(model: Model, data: AttackDataset, task: Task, plan: Plan, val: ScoringSet) -> tuple[Trained, Curves]:
    """Fine-tune a stack of attackers.

    A trained token embedding is restricted to the rows that occur, if the optimiser does not change the others.

    Args:
        model: the module and its parameters.
        data: texts and labels.
        task: the task whose labels are learned.
        plan: the fine-tunes.
        val: examples that are scored at the evaluated steps.
    """
    size, device, lengths = len(plan.attackers), model.device, data.lengths_host()
    optimizer = OPTIMIZERS[plan.attackers[0].optimizer]
    compact = model.embedding if optimizer.leaves_zero_gradients else None
    stacked = {name: model.stacked(name, size) for name in model.start if name != compact}
    rows = None
    if compact is not None:
        rows = _occurring_rows(data, task, plan, len(model.start[compact]), model.fixed_ids)
        stacked[compact] = rows.take(model.tables(slice(None)))
    stacked |= {name: value.to(device, copy=True) for name, value in model.own.items()}
    stacked[HEAD] = plan.heads.to(device, copy=True)
    trained = Trained(model, stacked, rows)
    loss = vmap(_loss(model))

    def losses(views: Params, labels: Tensor, ids: Tensor, mask: Tensor, *places: Tensor) -> Tensor:
        values: Tensor = loss(views, labels, ids if rows is None else rows.localise(ids), mask, *places)
        return values

    rates = plan.learning_rates().to(stacked[HEAD].dtype).to(device)
    curve, scored = torch.zeros_like(rates), [list[Tensor]() for _ in plan.attackers]
    state, replaying = optimizer.init(stacked), Replaying(RECORDERS.get(device.type))
    for start, stop, active in plan.segments(by_device(STEPS_PER_TRANSFER, device)):
        held = plan.held(active, by_device(STACK_SIZES, device))
        indices = plan.indices(start, stop, held)
        block = tight_batch(data, lengths, indices, task)
        if model.packs:
            block = _packed(block, int(lengths.numpy()[indices.numpy()].sum(-1).max()))
        views, moments = narrow(stacked, active), narrow_state(state, active)
        # Views, not copies: a recorded step reads the parameters from the same memory.
        gradients = functools.partial(_gradients, losses, narrow(stacked, held))
        for step in range(start, stop):
            batch = block.at(step - start)
            values, *found = replaying(held, gradients, batch.labels, *batch.inputs)
            grads = {name: value[:active] for name, value in zip(views, found, strict=True)}
            curve[step, :active] = values[:active]
            optimizer.update_(views, moments, grads, rates[step, :active], step + 1)
        for index in plan.due(stop):
            scored[index].append(trained.logits_of(slice(index, index + 1), val)[0])
    return trained, Curves(curve.cpu(), tuple(tuple(value.cpu() for value in values) for values in scored))


def train_heads(
    features: Tensor, labels: Tensor, plan: Plan, positions: Sequence[Tensor], val_features: Tensor
) -> tuple[Tensor, Curves]:
    """Train only the heads, on cached features of a frozen trunk.

    Args:
        features: (N, D).
        labels: (N,) on the device of `features`.
        plan: the fine-tunes; `subsets` is not used.
        positions: (n,) rows of `features` in each attacker's subset.
        val_features: (M, D) features that are scored at the evaluated steps.

    Returns:
        (S, C, D) heads and their training curves.
    """
    device = features.device
    stacked = {HEAD: plan.heads.to(device, copy=True)}
    rates = plan.learning_rates().to(features.dtype).to(device)
    curve, scored = torch.zeros_like(rates), [list[Tensor]() for _ in plan.attackers]
    optimizer = OPTIMIZERS[plan.attackers[0].optimizer]
    state, replaying = optimizer.init(stacked), Replaying(RECORDERS.get(device.type))
    local = Plan(plan.attackers, tuple(positions), plan.orders, plan.heads, plan.evaluated_steps, plan.deadline)

    def losses(views: Params, chosen: Tensor) -> Tensor:
        return _head_losses(views, features[chosen], labels[chosen])

    for start, stop, active in local.segments(plan.attackers[0].num_steps):
        held = local.held(active, by_device(STACK_SIZES, device))
        block = local.indices(start, stop, held).to(device, non_blocking=True)
        views, moments = narrow(stacked, active), narrow_state(state, active)
        gradients = functools.partial(_gradients, losses, narrow(stacked, held))
        for step in range(start, stop):
            values, *found = replaying(held, gradients, block[step - start])
            grads = {name: value[:active] for name, value in zip(views, found, strict=True)}
            curve[step, :active] = values[:active]
            optimizer.update_(views, moments, grads, rates[step, :active], step + 1)
        for index in local.due(stop):
            scored[index].append(logits(val_features, stacked[HEAD][index]))
    return stacked[HEAD], Curves(curve.cpu(), tuple(tuple(value.cpu() for value in values) for values in scored))


def by_device(table: dict[str, int], device: torch.device) -> int:
    """The entry for a device: `cuda`, or `cpu` for all other types."""
    return table["cuda" if device.type == "cuda" else "cpu"]


def plan_device(params: Params) -> torch.device:
    """The device of the parameters."""
    return next(iter(params.values())).device


def _occurring_rows(data: AttackDataset, task: Task, plan: Plan, vocab_size: int, num_fixed: int) -> Rows:
    longest = max(len(subset) for subset in plan.subsets)
    padded = torch.stack([subset[torch.arange(longest) % len(subset)] for subset in plan.subsets])
    return Rows.of(data.batch(padded, task).input_ids, vocab_size, num_fixed)


def _packed(block: Batch, num_tokens: int) -> Batch:
    """Add the positions of tokens to the batches' inputs, if packing saves enough work.

    Args:
        block: batches of texts (T, S, B, L).
        num_tokens: largest number of tokens of an attacker's batch.
    """
    multiple = by_device(TOKEN_MULTIPLE, block.labels.device)
    count, (*_, size, length) = -(-num_tokens // multiple) * multiple, block.input_ids.shape
    if count >= PACKING_SHARE * size * length:
        return block
    return block._replace(inputs=(*block.inputs, token_places(block.attention_mask, count)))


def _loss(model: Model) -> Callable[..., Tensor]:
    def loss(params: Params, labels: Tensor, ids: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        weights = model.shared | {name: value for name, value in params.items() if name != HEAD}
        options = model.options if places is None else model.options | {"places": places}
        features = functional_call(model.module, weights, (ids, mask), options)
        return F.cross_entropy(logits(features, params[HEAD]), labels)

    return loss


def _head_losses(params: Params, features: Tensor, labels: Tensor) -> Tensor:
    """(S,) mean cross-entropy of stacked heads on features (S, B, D) and labels (S, B)."""
    scores = logits(features, params[HEAD])
    return F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none").mean(1)


def _gradients(losses: Callable[..., Tensor], views: Params, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The attackers' losses `losses(params, *inputs)` (S,), and their gradients in the order of `views`."""
    leaves = {name: value.detach().requires_grad_() for name, value in views.items()}
    with torch.enable_grad():
        values = losses(leaves, *inputs)
        grads = torch.autograd.grad(values.sum(), list(leaves.values()), materialize_grads=True)
    return values.detach(), *grads
