"""Scoring of splits: batches of texts of similar length, trunk features, and the validation sample."""

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
"""Number of texts in a scoring batch."""
EXAMPLES_OF_A_CLASS = 8
"""Examples of every class in a validation sample, if there are as many."""


def tight_batch(data: AttackDataset, lengths: Tensor, indices: Tensor, task: Task) -> Batch:
    """A batch that is padded only to its longest example.

    Args:
        data: the examples.
        lengths: (N,) number of tokens of every example of `data`, on the host.
        indices: (..., B) on the host.
        task: the task whose labels are returned.
    """
    return data.batch(indices, task, pad_to=int(lengths[indices].max()))


@dataclass(frozen=True)
class ScoringSet:
    """Examples sorted by length and cut into batches."""

    batches: tuple[Batch, ...]
    indices: Tensor
    """(N,) indices of the examples in that order, on the host."""
    labels: Tensor
    """(N,) their labels, on the host."""

    @classmethod
    def of(cls, data: AttackDataset, indices: Tensor, task: Task) -> ScoringSet:
        """The scoring set of the examples at `indices` (N,), on the host."""
        lengths = data.lengths_host()
        ordered = indices[torch.argsort(lengths[indices], stable=True)]
        parts = [ordered[i : i + EXAMPLES_PER_BATCH] for i in range(0, len(ordered), EXAMPLES_PER_BATCH)]
        batches = tuple(tight_batch(data, lengths, part, task) for part in parts)
        return cls(batches, ordered, data.labels_host(task)[ordered])

    def __len__(self) -> int:
        return len(self.indices)


def forward_options(trunk: TrunkLike) -> dict[str, Any]:
    """Keyword arguments of a trunk's forward that compute only the needed part of the last layer, if it can."""
    return {"shortcut": True} if trunk.has_shortcut else {}


@torch.no_grad()
def trunk_features(trunk: TrunkLike, params: Params, examples: ScoringSet) -> Tensor:
    """(N, D) features in the order of `examples`."""
    module, options = as_module(trunk), forward_options(trunk)
    return torch.cat([functional_call(module, params, batch.inputs, options) for batch in examples.batches])


@torch.no_grad()
def hidden_features(trunk: TrunkLike, params: Params, examples: ScoringSet) -> Tensor:
    """(H, N, E) means over tokens of all hidden states, the embeddings first."""
    module, parts = as_module(trunk), []
    for batch in examples.batches:
        _, states = functional_call(module, params, batch.inputs, {"hidden_states": True})
        weights = batch.attention_mask.to(states.dtype)[None, :, :, None]
        parts.append((states * weights).sum(2) / weights.sum(2))
    return torch.cat(parts, dim=1)


class FeatureStore:
    """Features of examples under fixed weights, computed on demand and cached.

    Args:
        trunk: the architecture.
        params: its weights.
        data: the examples.
        indices: (M,) examples that may be requested, on the host.
        task: task of the labels in batches; features do not depend on it.
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
        """(n, E) token means of hidden state `layer`, of examples (n,)."""
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
    """A random sample of at most `size` validation examples, the same for every model.

    The sample contains `EXAMPLES_OF_A_CLASS` examples of each class, if there are as many, so that rare classes can be
    scored. These are fewer if `size` is small, but at least one per class, even if the sample then exceeds `size`.

    Args:
        indices: (M,) candidates.
        labels: (M,) their labels.
        size: most examples; None for all.
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
