"""Protocols of data for training and attacks: N labelled examples with splits and batches on a device.

Texts (`data/device.py`), vectors (`data/regression.py`) and texts with other labels (`attack/findings/benign.py`)
satisfy these protocols. Other kinds of data need the same members and no base class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import LongTensor, Tensor

from sdm_ray.core.types import Batch, Split, Task

UNLABELLED = -1
"""Class index of examples without a label of a task."""


def labelled(data: Dataset, indices: Tensor, task: Task) -> Tensor:
    """Host indices of the examples that have a label of a task, in the same order."""
    labels = data.labels_host(task)[indices]
    return indices if labels.is_floating_point() else indices[labels != UNLABELLED]


class BenignTask(NamedTuple):
    """Labels that are never used for training."""

    labels: Tensor
    """(N,) int64 class indices on the host, `UNLABELLED` if there is none."""
    names: tuple[str, ...]
    """Class names by index."""


class Dataset(Protocol):
    """Examples with a desired and a harmful label each; indices and labels are on the host, batches on `device`."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
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
        """(N,) labels of a task on the host; a copy.

        Either int64 class indices (`UNLABELLED` if there is none) or floating-point targets.
        """
        ...

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        """Gather examples by host indices (..., B) on the device, without synchronisation.

        If examples differ in width, a batch is as wide as its widest example, rounded up (further with `coarse`, which
        limits the number of widths), or `pad_to` wide.
        """
        ...


class TrainingDataset(Dataset, Protocol):
    """Data for meta-training."""

    def occurring_tokens(self, indices: Tensor) -> LongTensor:
        """Sorted token ids in examples (host indices of any shape), int64 on the host; empty without tokens."""
        ...


class AttackDataset(Dataset, Protocol):
    """Data for attacks: class labels, and two inputs, token ids and mask or their equivalents."""

    @property
    def benign_tasks(self) -> Mapping[str, BenignTask]:
        """Benign tasks by name; empty if the data have none."""
        ...

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names of a task, by index."""
        ...

    def lengths_host(self) -> Tensor:
        """(N,) int64 number of tokens of each example, on the host."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device."""
        ...


@runtime_checkable
class KnowsPositions(Protocol):
    """Optional protocol of data with known token positions of a person's name in each text."""

    def known_positions_host(self) -> Tensor | None:
        """(N, 2) int64 on the host: two token positions of the name in each text; -1 if there is none.

        These are the first tokens of the name's first two words, or the last and the first token of its only word. None
        if no text has any.
        """
        ...


def known_positions(data: object) -> Tensor | None:
    """Token positions of a name in each text, as in `KnowsPositions`; None for data without that protocol."""
    return data.known_positions_host() if isinstance(data, KnowsPositions) else None
