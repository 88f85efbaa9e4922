"""Many fine-tunes as one program: parameters stacked along an axis of attackers, one forward and backward for all.

The forward pass is `vmap` of `functional_call`; the attackers share no parameter, so the gradient of the sum of their
losses is the stack of their gradients. Attackers are ordered by their number of steps, longest first: those that have
finished drop off the end of every stack, which is a view and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sdm_ray.attack.families import Attacker
from sdm_ray.attack.optim import OPTIMIZERS, narrow, narrow_state
from sdm_ray.attack.rows import Rows
from sdm_ray.attack.views import ScoringSet, tight_batch
from sdm_ray.models.heads import logits
from sdm_ray.types import Params, Task

if TYPE_CHECKING:
    from sdm_ray.data.device import DeviceData

HEAD = "attack.head"
"""Name under which the head is stacked with the trunk's parameters."""
STEPS_PER_TRANSFER = {"cpu": 1, "cuda": 32}
"""Steps whose batches are gathered at once: a GPU wants few transfers, a CPU batches padded to their own length."""
ATTACKERS_PER_SCORING = {"cpu": 1, "cuda": 16}
"""Attackers that are scored at once. A CPU is faster one at a time: one model's weights stay in its cache."""


@dataclass(frozen=True)
class Plan:
    """Fine-tunes that run together, equal in batch size, longest first. All tensors on the host."""

    attackers: tuple[Attacker, ...]
    subsets: tuple[Tensor, ...]
    """(n,) example indices of each attacker."""
    orders: tuple[Tensor, ...]
    """(num_steps, B) positions in the subset, of each attacker."""
    heads: Tensor
    """(S, C, D) initial heads."""

    def segments(self, length: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, active): runs of at most `length` steps in which the same attackers are active."""
        ends = sorted({attacker.num_steps for attacker in self.attackers})
        start = 0
        for end in ends:
            active = sum(attacker.num_steps > start for attacker in self.attackers)
            while start < end:
                stop = min(start + length, end)
                yield start, stop, active
                start = stop

    def indices(self, start: int, stop: int, active: int) -> Tensor:
        """(T, S', B) example indices of steps `start` to `stop` of the first `active` attackers."""
        chosen = [subset[order[start:stop]] for subset, order in zip(self.subsets, self.orders, strict=True)]
        return torch.stack(chosen[:active], dim=1)

    def learning_rates(self) -> list[float]:
        """Learning rate of each attacker."""
        return [attacker.learning_rate for attacker in self.attackers]


class Trained:
    """Final parameters of a plan's attackers."""

    def __init__(self, trunk: nn.Module, base: Params, stacked: Params, rows: Rows | None, name: str | None) -> None:
        self._trunk, self._base, self._stacked, self._rows, self._name = trunk, base, stacked, rows, name

    def finite(self) -> Tensor:
        """(S,) whether all parameters of an attacker are finite."""
        return torch.stack([value.flatten(1).abs().amax(1) for value in self._stacked.values()]).isfinite().all(0)

    def params(self, attackers: slice) -> tuple[Params, Tensor]:
        """Stacked trunk parameters with full embeddings, and heads (S', C, D), of some attackers."""
        chosen = {name: value[attackers] for name, value in self._stacked.items()}
        head = chosen.pop(HEAD)
        if self._rows is not None and self._name is not None:
            chosen[self._name] = self._rows.restore(self._base[self._name], chosen[self._name], attackers)
        return chosen, head

    @torch.no_grad()
    def logits(self, examples: ScoringSet) -> Tensor:
        """(S, N, C) on the host, examples in the order of `examples`."""
        total = len(self._stacked[HEAD])
        group = by_device(ATTACKERS_PER_SCORING, self._stacked[HEAD].device)
        parts = [self._group_logits(slice(i, min(i + group, total)), examples) for i in range(0, total, group)]
        return torch.cat(parts).cpu()

    def _group_logits(self, attackers: slice, examples: ScoringSet) -> Tensor:
        params, head = self.params(attackers)
        if len(head) == 1:
            single = {name: value[0] for name, value in params.items()}
            return torch.cat(
                [logits(functional_call(self._trunk, single, batch.inputs), head[0]) for batch in examples.batches]
            )[None]

        def features(params: Params, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            result: Tensor = functional_call(self._trunk, params, (input_ids, attention_mask))
            return result

        forward = vmap(features, in_dims=(0, None, None))
        return torch.cat([logits(forward(params, *batch.inputs), head) for batch in examples.batches], dim=1)


def train_full(
    trunk: nn.Module, params: Params, embedding: str | None, data: DeviceData, task: Task, plan: Plan
) -> tuple[Trained, Tensor]:
    """Fine-tune everything.

    Args:
        trunk: the architecture.
        params: released weights.
        embedding: name of the token embedding, of which only the rows that occur are trained; None trains all of it.
        data: texts and labels.
        task: whose labels.
        plan: the fine-tunes.

    Returns:
        The trained stack, and (S,) training losses of each attacker's last step.
    """
    size, device, lengths = len(plan.attackers), plan_device(params), data.lengths_host()
    stacked = {name: value for name, value in params.items() if name != embedding}
    stacked = {name: value.detach().expand(size, *value.shape).clone() for name, value in stacked.items()}
    rows = None
    if embedding is not None:
        rows = _occurring_rows(data, task, plan, len(params[embedding]), getattr(trunk, "fixed_ids", 0))
        stacked[embedding] = rows.take(params[embedding].detach())
    stacked[HEAD] = plan.heads.to(device, copy=True)

    def losses(views: Params, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        ids = ids if rows is None else rows.localise(ids)
        return vmap(_loss(trunk))(views, ids, mask, labels)

    last = torch.zeros(size, device=device, dtype=stacked[HEAD].dtype)
    rates = torch.tensor(plan.learning_rates(), device=device, dtype=last.dtype)
    optimizer = OPTIMIZERS[plan.attackers[0].optimizer]
    state = optimizer.init(stacked)
    for start, stop, active in plan.segments(by_device(STEPS_PER_TRANSFER, device)):
        block = tight_batch(data, lengths, plan.indices(start, stop, active), task)
        views, moments = narrow(stacked, active), narrow_state(state, active)
        for step in range(start, stop):
            batch = block.at(step - start)
            grads, last[:active] = _gradients(losses, views, *batch.inputs, batch.labels)
            optimizer.update_(views, moments, grads, rates[:active], step + 1)
    return Trained(trunk, params, stacked, rows, embedding), last


def train_heads(features: Tensor, labels: Tensor, plan: Plan, positions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Train heads alone, on cached features of a frozen trunk.

    Args:
        features: (N, D).
        labels: (N,) on the device of `features`.
        plan: the fine-tunes; `subsets` is not read.
        positions: (n,) rows of `features` that each attacker owns.

    Returns:
        (S, C, D) heads and (S,) training losses of each attacker's last step.
    """
    device = features.device
    stacked = {HEAD: plan.heads.to(device, copy=True)}
    last = torch.zeros(len(plan.attackers), device=device, dtype=features.dtype)
    rates = torch.tensor(plan.learning_rates(), device=device, dtype=features.dtype)
    optimizer = OPTIMIZERS[plan.attackers[0].optimizer]
    state = optimizer.init(stacked)
    local = Plan(plan.attackers, tuple(positions), plan.orders, plan.heads)
    for start, stop, active in plan.segments(plan.attackers[0].num_steps):
        block = local.indices(start, stop, active).to(device, non_blocking=True)
        views, moments = narrow(stacked, active), narrow_state(state, active)
        for step in range(start, stop):
            chosen = block[step - start]
            inputs, targets = features[chosen], labels[chosen]
            grads, last[:active] = _gradients(_head_losses, views, inputs, targets)
            optimizer.update_(views, moments, grads, rates[:active], step + 1)
    return stacked[HEAD], last


def by_device(table: dict[str, int], device: torch.device) -> int:
    """The entry of a device: that of `cuda`, or that of `cpu` for all others."""
    return table["cuda" if device.type == "cuda" else "cpu"]


def plan_device(params: Params) -> torch.device:
    """Where the parameters lie."""
    return next(iter(params.values())).device


def _occurring_rows(data: DeviceData, task: Task, plan: Plan, vocab_size: int, num_fixed: int) -> Rows:
    longest = max(len(subset) for subset in plan.subsets)
    padded = torch.stack([subset[torch.arange(longest) % len(subset)] for subset in plan.subsets])
    return Rows.of(data.batch(padded, task).input_ids, vocab_size, num_fixed)


def _loss(trunk: nn.Module) -> Callable[[Params, Tensor, Tensor, Tensor], Tensor]:
    def loss(params: Params, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        weights = {name: value for name, value in params.items() if name != HEAD}
        features = functional_call(trunk, weights, (input_ids, attention_mask))
        return F.cross_entropy(logits(features, params[HEAD]), labels)

    return loss


def _head_losses(params: Params, features: Tensor, labels: Tensor) -> Tensor:
    """(S,) mean cross-entropy of stacked heads on features (S, B, D) and labels (S, B)."""
    scores = logits(features, params[HEAD])
    return F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none").mean(1)


def _gradients(losses: Callable[..., Tensor], views: Params, *inputs: Tensor) -> tuple[Params, Tensor]:
    """Gradients of every attacker's own loss `losses(params, *inputs)` (S,), and the losses."""
    leaves = {name: value.detach().requires_grad_() for name, value in views.items()}
    with torch.enable_grad():
        values = losses(leaves, *inputs)
        grads = torch.autograd.grad(values.sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), values.detach()
