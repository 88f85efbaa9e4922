"""Whether a released model can still be trained on what nobody forbids.

A defence that makes weights untrainable blocks nothing in particular. The same search is run on the desired task, and
on one that no training saw: a grouping of the desired task's classes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Batch, Split, Task

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

GROUPING_SEED = 20_231
"""Of the grouping: the same classes fall together for every model and seed."""


class GroupedData:
    """Data whose desired classes are drawn together into groups of about the same size.

    Args:
        data: the examples.
        num_groups: G, at most the number of desired classes.
    """

    def __init__(self, data: AttackDataset, num_groups: int) -> None:
        self._data = data
        names = data.label_names(Task.DESIRED)
        order = torch.randperm(len(names), generator=seeded(GROUPING_SEED, names)).tolist()
        self._group_of = torch.empty(len(names), dtype=torch.int64)
        for rank, label in enumerate(order):
            self._group_of[label] = rank % num_groups
        groups = [[names[i] for i in range(len(names)) if self._group_of[i] == group] for group in range(num_groups)]
        self._names = tuple(" / ".join(group) for group in groups)
        self._labels = self._group_of[data.labels_host(Task.DESIRED)]
        self._on_device = self._labels.to(data.device)
        self.digest = f"{data.digest}-grouped-{num_groups}"

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self._data.device

    def to(self, device: torch.device | str) -> GroupedData:
        """The same data on another device."""
        moved = copy.copy(self)
        moved._data, moved._on_device = self._data.to(device), self._labels.to(device)
        return moved

    def num_classes(self, task: Task) -> int:
        """G."""
        return len(self._names)

    def label_names(self, task: Task) -> tuple[str, ...]:
        """The classes of each group."""
        return self._names

    def labels_host(self, task: Task) -> Tensor:
        """(N,) int64 groups on the host."""
        return self._labels.clone()

    def indices(self, split: Split) -> Tensor:
        """Sorted indices of a split's examples, int64 on the host."""
        return self._data.indices(split)

    def lengths_host(self) -> Tensor:
        """(N,) int64 tokens of each example on the host."""
        return self._data.lengths_host()

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        """Examples by index, labelled by group; arguments as of `Dataset.batch`."""
        batch = self._data.batch(indices, Task.DESIRED, pad_to=pad_to, coarse=coarse)
        rows = indices.to(self._on_device.device, non_blocking=True)
        return batch._replace(labels=self._on_device[rows])
