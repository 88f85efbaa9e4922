"""Splits as the attack reads them: batches of similar length for scoring, trunk features for heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.core.types import Batch, Params, Task
from sdm_ray.models.interface import TrunkLike, as_module

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

EXAMPLES_PER_BATCH = 128
"""Texts that are scored at once."""
EXAMPLES_OF_A_CLASS = 8
"""Examples of every class, rare ones too, that a validation sample holds where there are as many."""


def tight_batch(data: AttackDataset, lengths: Tensor, indices: Tensor, task: Task) -> Batch:
    """Examples padded to the longest of them and no further: short texts are cheap.

    Args:
        data: the examples.
        lengths: (N,) host; tokens of every example of `data`.
        indices: (..., B) host.
        task: whose labels.
    """
    return data.batch(indices, task, pad_to=int(lengths[indices].max()))


@dataclass(frozen=True)
class ScoringSet:
    """Examples in order of length, cut into batches of similar ones."""

    batches: tuple[Batch, ...]
    indices: Tensor
    """(N,) host; the examples in the order in which they are scored."""
    labels: Tensor
    """(N,) host; their labels."""

    @classmethod
    def of(cls, data: AttackDataset, indices: Tensor, task: Task) -> ScoringSet:
        """The examples at `indices` (N,) (host)."""
        lengths = data.lengths_host()
        ordered = indices[torch.argsort(lengths[indices], stable=True)]
        parts = [ordered[i : i + EXAMPLES_PER_BATCH] for i in range(0, len(ordered), EXAMPLES_PER_BATCH)]
        batches = tuple(tight_batch(data, lengths, part, task) for part in parts)
        return cls(batches, ordered, data.labels_host(task)[ordered])

    def __len__(self) -> int:
        return len(self.indices)


def forward_options(trunk: TrunkLike) -> dict[str, Any]:
    """Arguments of a trunk: of the last layer only what the features need, where it knows how."""
    return {"shortcut": True} if trunk.has_shortcut else {}


@torch.no_grad()
def trunk_features(trunk: TrunkLike, params: Params, examples: ScoringSet) -> Tensor:
    """(N, D) features in the order of `examples`."""
    module, options = as_module(trunk), forward_options(trunk)
    return torch.cat([functional_call(module, params, batch.inputs, options) for batch in examples.batches])


@torch.no_grad()
def hidden_features(trunk: TrunkLike, params: Params, examples: ScoringSet) -> Tensor:
    """(H, N, E) means over tokens of the hidden states: those of the embeddings and of each layer."""
    module, parts = as_module(trunk), []
    for batch in examples.batches:
        _, states = functional_call(module, params, batch.inputs, {"hidden_states": True})
        weights = batch.attention_mask.to(states.dtype)[None, :, :, None]
        parts.append((states * weights).sum(2) / weights.sum(2))
    return torch.cat(parts, dim=1)


class FeatureStore:
    """Features of examples under fixed weights, computed when an example is first asked for, and kept.

    Args:
        trunk: the architecture.
        params: its weights.
        data: the examples.
        indices: (M,) host; those that may be asked for.
        task: whose labels a batch carries; features do not depend on it.
    """

    def __init__(self, trunk: TrunkLike, params: Params, data: AttackDataset, indices: Tensor, task: Task) -> None:
        self._trunk, self._params, self._data, self._task = trunk, params, data, task
        self._row = torch.full((int(indices.max()) + 1,), -1)
        self._row[indices] = torch.arange(len(indices))
        self._known = {hidden: torch.zeros(len(indices), dtype=torch.bool) for hidden in (False, True)}
        self._kept: dict[bool, Tensor] = {}

    def pooled(self, indices: Tensor) -> Tensor:
        """(n, D) pooled features of examples (n,)."""
        self._ensure(indices, hidden=False)
        return self._kept[False][0, self._row[indices]]

    def hidden(self, layer: int, indices: Tensor) -> Tensor:
        """(n, E) means over tokens of a hidden state of examples (n,)."""
        self._ensure(indices, hidden=True)
        return self._kept[True][layer, self._row[indices]]

    def _ensure(self, indices: Tensor, *, hidden: bool) -> None:
        wanted = torch.from_numpy(np.unique(indices.numpy()))
        missing = wanted[~self._known[hidden][self._row[wanted]]]
        if not len(missing):
            return
        examples = ScoringSet.of(self._data, missing, self._task)
        if hidden:
            found = hidden_features(self._trunk, self._params, examples)
        else:
            found = trunk_features(self._trunk, self._params, examples)[None]
        if hidden not in self._kept:
            self._kept[hidden] = found.new_empty(len(found), len(self._known[hidden]), found.shape[-1])
        rows = self._row[examples.indices]
        self._kept[hidden][:, rows] = found
        self._known[hidden][rows] = True


def validation_sample(
    indices: Tensor, labels: Tensor, size: int | None, num_classes: int, generator: torch.Generator
) -> Tensor:
    """At most `size` of the validation examples, chosen at random; the same for every model.

    Rare classes stay scorable: of each class up to `EXAMPLES_OF_A_CLASS` come first, fewer where `size` is short, but
    at least one, be `size` exceeded by that.

    Args:
        indices: (M,) candidates.
        labels: (M,) their labels.
        size: how many; None takes all.
        num_classes: C.
        generator: host generator.
    """
    if size is None or len(indices) <= size:
        return indices
    order = torch.randperm(len(indices), generator=generator)
    share = max(1, min(EXAMPLES_OF_A_CLASS, size // num_classes))
    first = torch.cat([order[labels[order] == label][:share] for label in range(num_classes)])
    rest = order[~torch.isin(order, first)][: max(0, size - len(first))]
    return indices[torch.cat([first, rest])].sort().values
