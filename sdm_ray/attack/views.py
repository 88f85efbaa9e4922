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


@dataclass(frozen=True)
class ScoringSet:
    """Examples in order of length, cut into batches that are padded to their own longest text."""

    batches: tuple[Batch, ...]
    indices: Tensor
    """(N,) host; the examples in the order in which they are scored."""
    labels: Tensor
    """(N,) host; their labels."""

    @classmethod
    def of(cls, data: DeviceData, indices: Tensor, task: Task) -> ScoringSet:
        """The examples at `indices` (N,) (host)."""
        ordered = indices[torch.argsort(data.lengths_host()[indices], stable=True)]
        starts = range(0, len(ordered), EXAMPLES_PER_BATCH)
        batches = tuple(data.batch(ordered[start : start + EXAMPLES_PER_BATCH], task) for start in starts)
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
