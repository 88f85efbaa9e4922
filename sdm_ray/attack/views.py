"""Splits as the attack reads them: batches of similar length for scoring, trunk features for heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdm_ray.types import Batch, Params, Task

if TYPE_CHECKING:
    from sdm_ray.data.device import DeviceData

EXAMPLES_PER_BATCH = 128
"""Texts that are scored at once."""


def tight_batch(data: DeviceData, lengths: Tensor, indices: Tensor, task: Task) -> Batch:
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
    def of(cls, data: DeviceData, indices: Tensor, task: Task) -> ScoringSet:
        """The examples at `indices` (N,) (host)."""
        lengths = data.lengths_host()
        ordered = indices[torch.argsort(lengths[indices], stable=True)]
        parts = [ordered[i : i + EXAMPLES_PER_BATCH] for i in range(0, len(ordered), EXAMPLES_PER_BATCH)]
        batches = tuple(tight_batch(data, lengths, part, task) for part in parts)
        return cls(batches, ordered, data.labels_host(task)[ordered])

    def __len__(self) -> int:
        return len(self.indices)


@torch.no_grad()
def trunk_features(trunk: nn.Module, params: Params, examples: ScoringSet) -> Tensor:
    """(N, D) features in the order of `examples`."""
    return torch.cat(
        [functional_call(trunk, params, (batch.input_ids, batch.attention_mask)) for batch in examples.batches]
    )


def validation_sample(indices: Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    """At most `size` of the validation examples, chosen at random; the same for every model."""
    if size is None or len(indices) <= size:
        return indices
    return indices[torch.randperm(len(indices), generator=generator)[:size]].sort().values
