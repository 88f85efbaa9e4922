"""Few-shot subsets of the harmful data, and batches from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import AdversarySettings
from sdm_ray.core.errors import UsageError
from sdm_ray.data.sampler import EpochSampler


class FewShot:
    """Draws few-shot subsets with classes as balanced as the examples allow.

    Args:
        indices: (N,) host indices that may be drawn.
        labels: (N,) their labels.
    """

    def __init__(self, indices: Tensor, labels: Tensor) -> None:
        self._classes = [indices[labels == label] for label in torch.unique(labels).tolist()]
        self._total = len(indices)

    def check(self, size: int | None, setting: str) -> None:
        """Refuse a subset size that exceeds the examples.

        Raises:
            UsageError: naming the setting.
        """
        if size is not None and size > self._total:
            raise UsageError(f"{setting} is {size}, but the meta-training split has only {self._total} examples")

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """(size,) host indices without repetition, sorted."""
        order = torch.randperm(len(self._classes), generator=generator).tolist()
        shuffled = [values[torch.randperm(len(values), generator=generator)] for values in self._classes]
        counts = _shares(size, [len(values) for values in self._classes], order)
        chosen = torch.cat([values[:count] for values, count in zip(shuffled, counts, strict=True)])
        return chosen.sort().values


def _shares(size: int, available: list[int], order: list[int]) -> list[int]:
    """As even a split of `size` as the classes allow; what is left over goes to the first classes of `order`."""
    counts = [0] * len(available)
    while (left := size - sum(counts)) > 0:
        open_classes = [c for c in order if counts[c] < available[c]]
        share, rest = divmod(left, len(open_classes))
        for rank, c in enumerate(open_classes):
            counts[c] += min(share + (rank < rest), available[c] - counts[c])
    return counts


class InnerBatches:
    """Host indices (K, B) of a fresh adversary's batches: from its own few-shot subset, or from all examples.

    Args:
        indices: (N,) host indices of meta-training.
        few_shot: draws the subsets.
        settings: the distribution.
        generator: CPU generator of all draws.
    """

    def __init__(
        self, indices: Tensor, few_shot: FewShot, settings: AdversarySettings, generator: torch.Generator
    ) -> None:
        self._few_shot, self._generator, self._subset_size = few_shot, generator, settings.subset_size
        self._sampler = EpochSampler(indices, max(settings.batch_sizes), generator)

    def draw(self, batch_size: int, num_steps: int) -> Tensor:
        """(num_steps, B) host indices; B is `batch_size`, or the subset's size where that is smaller."""
        if self._subset_size is None:
            return self._sampler.next(num_steps * batch_size).view(num_steps, -1)
        subset = self._few_shot.draw(self._subset_size, self._generator)
        sampler = EpochSampler(subset, min(batch_size, len(subset)), self._generator)
        return torch.stack([sampler.next() for _ in range(num_steps)])

    def state_dict(self) -> dict[str, Any]:
        """Position among all examples."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._sampler.load_state_dict(state)
