"""The protocols of data for training and attacks: N labelled examples with splits and batches on a device.

Texts (`data/device.py`), vectors (`data/regression.py`) and texts under other labels (`attack/findings/benign.py`)
satisfy these protocols. Data of another kind need the same members and no base class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import LongTensor, Tensor

from sdm_ray.core.types import Batch, Split, Task

UNLABELLED = -1
"""Stands for a class index where an example has no label of a task."""


def labelled(data: Dataset, indices: Tensor, task: Task) -> Tensor:
    """The host indices whose examples have a label of a task, in the same order."""
    labels = data.labels_host(task)[indices]
    return indices if labels.is_floating_point() else indices[labels != UNLABELLED]


class BenignTask(NamedTuple):
    """Labels that no training reads."""

    labels: Tensor
    """(N,) int64 class indices on the host, `UNLABELLED` where there is none."""
    names: tuple[str, ...]
    """Class names by index."""


class Dataset(Protocol):
    """Examples with a desired and a harmful label each; indices and labels are on the host, batches on `device`."""

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of inputs, labels and splits."""
        ...

    def num_classes(self, task: Task) -> int:
        """C of a task; 1 for a regression."""
        ...

    def indices(self, split: Split) -> Tensor:
        """Sorted indices of a split's examples, int64 on the host; a copy."""
        ...

    def labels_host(self, task: Task) -> Tensor:
        """(N,) labels of a task on the host: int64 class indices, `UNLABELLED` where there is none, or floating-point
        targets; a copy."""
        ...

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        """Examples by host indices (..., B), gathered on the device without waiting for it.

        Where examples differ in width, a batch is as wide as its widest example, rounded up (`coarse` rounds further,
        so that few widths occur), or `pad_to` wide.
        """
        ...


class TrainingDataset(Dataset, Protocol):
    """Data for meta-training."""

    def occurring_tokens(self, indices: Tensor) -> LongTensor:
        """Sorted token ids in examples (host indices of any shape), int64 on the host; none in data without tokens."""
        ...


class AttackDataset(Dataset, Protocol):
    """What an attack reads: class labels, and two inputs, token ids and mask, or what stands for them."""

    @property
    def benign_tasks(self) -> Mapping[str, BenignTask]:
        """Benign tasks by name; empty where the data have none."""
        ...

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names of a task, by index."""
        ...

    def lengths_host(self) -> Tensor:
        """(N,) int64 tokens of each example on the host."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device."""
        ...


@runtime_checkable
class KnowsPositions(Protocol):
    """Optional protocol of data that know where their texts name a person."""

    def known_positions_host(self) -> Tensor | None:
        """(N, 2) int64 on the host: the first tokens of a name's first two words in each text, or the first two tokens
        of its only word; -1 where there is none. None where no text has any."""
        ...


def known_positions(data: AttackDataset) -> Tensor | None:
    """Where each text names a person, as `KnowsPositions`; None for data without that protocol."""
    return data.known_positions_host() if isinstance(data, KnowsPositions) else None
