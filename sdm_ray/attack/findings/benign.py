"""Whether a released model can still be fine-tuned on benign tasks.

A defence that makes weights untrainable blocks every task. The attack's search is therefore also run on the desired
task and on tasks that were not trained on: those in the data, and one that merges the desired classes into groups.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Batch, Split, Task
from sdm_ray.data.interface import UNLABELLED, BenignTask, known_positions

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

GROUPING_SEED = 20_231
"""Seed of the grouping, constant so that every model and seed has the same groups."""


class RelabelledData:
    """Data with the labels of a benign task, whichever task is requested; examples without a label are left out.

    Args:
        data: the examples.
        benign: labels and class names.
        name: name of the task; part of the digest.
    """

    def __init__(self, data: AttackDataset, benign: BenignTask, name: str) -> None:
        self._data: AttackDataset = data
        self._labels, self._names = benign.labels, benign.names
        self._on_device = self._labels.to(data.device)
        self.digest = f"{data.digest}-{name}"
        self.benign_tasks: Mapping[str, BenignTask] = {}

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self._data.device

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device."""
        moved = copy.copy(self)
        moved._data, moved._on_device = self._data.to(device), self._labels.to(device)
        return moved

    def num_classes(self, task: Task) -> int:
        """C of the benign task."""
        return len(self._names)

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names of the benign task."""
        return self._names

    def labels_host(self, task: Task) -> Tensor:
        """(N,) int64 labels of the benign task on the host."""
        return self._labels.clone()

    def indices(self, split: Split) -> Tensor:
        """Sorted indices of a split's labelled examples, int64 on the host."""
        indices = self._data.indices(split)
        return indices[self._labels[indices] != UNLABELLED]

    def lengths_host(self) -> Tensor:
        """(N,) int64 tokens of each example on the host."""
        return self._data.lengths_host()

    def known_positions_host(self) -> Tensor | None:
        """(N, 2) int64 token positions of the name in each text, on the host; see `KnowsPositions`."""
        return known_positions(self._data)

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        """Batch of examples with benign labels; arguments as in `Dataset.batch`."""
        batch = self._data.batch(indices, Task.DESIRED, pad_to=pad_to, coarse=coarse)
        rows = indices.to(self._on_device.device, non_blocking=True)
        return batch._replace(labels=self._on_device[rows])


class GroupedData(RelabelledData):
    """Data whose desired classes are merged at random into groups of similar size.

    Args:
        data: the examples.
        num_groups: G, at most the number of desired classes.
    """

    def __init__(self, data: AttackDataset, num_groups: int) -> None:
        names = data.label_names(Task.DESIRED)
        order = torch.randperm(len(names), generator=seeded(GROUPING_SEED, names)).tolist()
        group_of = torch.empty(len(names) + 1, dtype=torch.int64)
        for rank, label in enumerate(order):
            group_of[label] = rank % num_groups
        group_of[UNLABELLED] = UNLABELLED  # the last place, which no class has
        groups = [[names[i] for i in range(len(names)) if group_of[i] == group] for group in range(num_groups)]
        benign = BenignTask(group_of[data.labels_host(Task.DESIRED)], tuple(" / ".join(group) for group in groups))
        super().__init__(data, benign, f"grouped-{num_groups}")


def benign_data(data: AttackDataset, num_groups: int) -> dict[str, AttackDataset]:
    """Data for each benign task by name: `desired`, `grouped` if there are more than `num_groups` desired classes, and
    the benign tasks in the data."""
    desired = BenignTask(data.labels_host(Task.DESIRED), data.label_names(Task.DESIRED))
    tasks: dict[str, AttackDataset] = {"desired": data}
    if bool((desired.labels == UNLABELLED).any()):
        tasks["desired"] = RelabelledData(data, desired, "desired")
    if data.num_classes(Task.DESIRED) > num_groups:
        tasks["grouped"] = GroupedData(data, num_groups)
    return tasks | {name: RelabelledData(data, benign, name) for name, benign in data.benign_tasks.items()}
