"""The regression of the paper (Henderson et al., arXiv 2211.14946): Gaussian vectors with two random linear labels.

Pretraining helps with neither label, and a network learns both equally well, so an experiment on task blocking takes
seconds. (The paper's released code uses the labels' signs as classes.)
"""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import LongTensor, Tensor

from sdm_ray.core.types import Batch, Split, Task
from sdm_ray.data.interface import BenignTask

SHARES = {Split.META_TRAIN: 0.5, Split.ATTACKER_TRAIN: 0.2, Split.ATTACKER_VAL: 0.1, Split.TEST: 0.2}
"""Fraction of the examples in each split. Examples are independent, so a split is a contiguous range of them."""


class RegressionWorld:
    """N vectors x ~ N(0, 1) with labels w'x for a desired and a harmful unit vector w, stored on `device`.

    A `TrainingDataset` without tokens. Labels have mean 0 and variance 1, so predicting 0 has a mean squared error of
    1.

    Args:
        num_examples: N.
        seed: seed of the vectors and of both w. They are drawn on the CPU, so a seed gives the same data on any device.
        input_dim: I, 25 in the paper.
        device: the device of the batches.
        dtype: type of vectors and labels.

    Raises:
        ValueError: if `num_examples` leaves a split empty, or `input_dim` is below 2.
    """

    def __init__(
        self,
        num_examples: int,
        seed: int,
        *,
        input_dim: int = 25,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if num_examples < 10:
            raise ValueError(f"num_examples is {num_examples}, but every split needs one: give at least 10")
        if input_dim < 2:
            raise ValueError(f"input_dim is {input_dim}, but two labels need at least 2")
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(input_dim, len(Task), generator=generator, dtype=torch.float64)
        inputs = torch.randn(num_examples, input_dim, generator=generator, dtype=torch.float64)
        labels = inputs @ (weights / weights.norm(dim=0))
        self.device = torch.device(device)
        self._num_examples = num_examples
        self._indices = _runs(num_examples)
        self._inputs = inputs.to(self.device, dtype)
        self._labels_host = {task: labels[:, index].to(dtype) for index, task in enumerate(Task)}
        self._labels = {task: values.to(self.device) for task, values in self._labels_host.items()}
        header = f"regression\0{num_examples}\0{seed}\0{input_dim}\0{dtype}"
        self.digest = hashlib.sha256(header.encode() + inputs.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return self._num_examples

    def to(self, device: torch.device | str) -> RegressionWorld:
        """A copy of the data on another device."""
        moved = copy.copy(self)
        moved.device, moved._inputs = torch.device(device), self._inputs.to(device)
        moved._labels = {task: labels.to(device) for task, labels in self._labels.items()}
        return moved

    def num_classes(self, task: Task) -> int:
        """1, because a head has one output."""
        return 1

    def indices(self, split: Split) -> LongTensor:
        """Sorted indices of a split's examples, int64 on the host."""
        return self._indices[split].clone()  # type: ignore[return-value]

    def labels_host(self, task: Task) -> Tensor:
        """(N,) floating-point labels of a task on the host."""
        labels: Tensor = self._labels_host[task].clone()
        return labels

    def occurring_tokens(self, indices: Tensor) -> LongTensor:
        """Empty: vectors have no tokens."""
        return no_tokens()

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        """Gather examples on the device without synchronising with it.

        Args:
            indices: (..., B) int64 on the host.
            task: the task whose labels are returned.
            pad_to: ignored; it is for texts, and vectors have one width.
            coarse: ignored too.

        Returns:
            Vectors (..., B, I) and floating-point labels (..., B).
        """
        if self.device.type == "cuda":
            # A copy from pageable memory would synchronise with the device.
            indices = indices.pin_memory()
        rows = indices.to(self.device, non_blocking=True)
        return Batch((self._inputs[rows],), self._labels[task][rows])


class SignedVectors:
    """The vectors of a `RegressionWorld` with two classes per task, the label's sign; for training and attacks.

    Attacks batch examples by length; each vector has length 1.

    Args:
        world: the vectors.
    """

    width, max_id, pad_id = 1, 0, 0

    def __init__(self, world: RegressionWorld) -> None:
        self._world = world
        self.device = world.device
        self.digest = hashlib.sha256(f"signs\0{world.digest}".encode()).hexdigest()
        self._labels_host = {task: (world.labels_host(task) > 0).long() for task in Task}
        self._labels = {task: labels.to(self.device) for task, labels in self._labels_host.items()}

    def __len__(self) -> int:
        return len(self._world)

    def num_classes(self, task: Task) -> int:
        """2."""
        return 2

    @property
    def benign_tasks(self) -> dict[str, BenignTask]:
        """Empty: there are no benign tasks."""
        return {}

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names, by index."""
        return ("negative", "positive")

    def indices(self, split: Split) -> LongTensor:
        """Sorted indices of a split's examples, int64 on the host."""
        return self._world.indices(split)

    def labels_host(self, task: Task) -> LongTensor:
        """(N,) int64 class indices of a task on the host."""
        return self._labels_host[task].clone()  # type: ignore[return-value]

    def lengths_host(self) -> LongTensor:
        """(N,) ones."""
        return torch.ones(len(self), dtype=torch.int64)  # type: ignore[return-value]

    def occurring_tokens(self, indices: Tensor) -> LongTensor:
        """Empty: vectors have no tokens."""
        return no_tokens()

    def to(self, device: torch.device | str) -> SignedVectors:
        """A copy of the data on another device."""
        moved = copy.copy(self)
        moved._world, moved.device = self._world.to(device), torch.device(device)
        moved._labels = {task: labels.to(device) for task, labels in self._labels.items()}
        return moved

    def shared_texts(self) -> dict[str, int]:
        """Empty: no vector occurs twice."""
        return {}

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        """Gather examples: vectors (..., B, I), a mask (..., B, 1) of ones, and int64 labels (..., B)."""
        (vectors,), _ = self._world.batch(indices, task)
        rows = indices.to(self.device, non_blocking=True)
        return Batch((vectors, torch.ones_like(rows).unsqueeze(-1)), self._labels[task][rows])


def no_tokens() -> LongTensor:
    """(0,) int64: the tokens of data that has none."""
    return torch.empty(0, dtype=torch.int64)  # type: ignore[return-value]


def _runs(num_examples: int) -> dict[Split, Tensor]:
    """A contiguous range of indices for each split, of the sizes that `SHARES` gives."""
    runs, start, share = {}, 0, 0.0
    for split, part in SHARES.items():
        share += part
        stop = round(share * num_examples)
        runs[split] = torch.arange(start, stop)
        start = stop
    return runs
