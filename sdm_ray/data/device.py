"""Tokenised data on the device: batches are gathered there, and only indices are transferred."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import torch
from torch import LongTensor, Tensor

from sdm_ray.core.types import Batch, Split, Task
from sdm_ray.data.assignment import SPLITS
from sdm_ray.data.interface import BenignTask
from sdm_ray.data.tokenized import TokenizedData, power_of_two, round_up


class DeviceData:
    """N examples on `device`, moved once; labels, lengths and splits are on the host too.

    Args:
        tokenized: the examples.
        device: device of the batches.
    """

    def __init__(self, tokenized: TokenizedData, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.digest = tokenized.digest
        self.pad_id = tokenized.pad_id
        self._max_id = max(int(tokenized.input_ids.max()), tokenized.pad_id)
        self._label_names = {task: tokenized.label_names(task) for task in Task}
        self._lengths_host = np.array(tokenized.lengths, dtype=np.int64)
        self._labels_host = {task: torch.tensor(tokenized.labels(task), dtype=torch.int64) for task in Task}
        self._indices = {
            split: torch.from_numpy(np.flatnonzero(tokenized.split == code)) for code, split in enumerate(SPLITS)
        }
        self._ids_host = tokenized.input_ids
        known = tokenized.known
        self._known = None if known is None or not (known >= 0).any() else torch.tensor(known, dtype=torch.int64)
        self._input_ids = torch.from_numpy(tokenized.input_ids.astype(np.int64)).to(self.device)
        self._lengths = torch.from_numpy(self._lengths_host).to(self.device)
        self._labels = {task: labels.to(self.device) for task, labels in self._labels_host.items()}
        self._positions = torch.arange(self.width, device=self.device)
        self.benign_tasks = {
            name: BenignTask(torch.tensor(labels.codes, dtype=torch.int64), labels.names)
            for name, labels in tokenized.benign.items()
        }

    def __len__(self) -> int:
        return len(self._lengths_host)

    @property
    def width(self) -> int:
        """L: tokens of the widest batch."""
        return int(self._input_ids.shape[1])

    @property
    def max_id(self) -> int:
        """Largest token id, padding included."""
        return self._max_id

    def to(self, device: torch.device | str) -> DeviceData:
        """The same data on another device."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved._input_ids, moved._lengths = self._input_ids.to(device), self._lengths.to(device)
        moved._labels = {task: labels.to(device) for task, labels in self._labels.items()}
        moved._positions = self._positions.to(device)
        return moved

    def num_classes(self, task: Task) -> int:
        """C of a task."""
        return len(self._label_names[task])

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names of a task, by index."""
        return self._label_names[task]

    def indices(self, split: Split) -> LongTensor:
        """Sorted indices of a split's examples, int64 on the host."""
        return self._indices[split].clone()  # type: ignore[return-value]

    def labels_host(self, task: Task) -> LongTensor:
        """(N,) int64 class indices of a task on the host."""
        return self._labels_host[task].clone()  # type: ignore[return-value]

    def lengths_host(self) -> LongTensor:
        """(N,) int64 tokens of each text on the host."""
        return torch.from_numpy(self._lengths_host.copy())  # type: ignore[return-value]

    def known_positions_host(self) -> LongTensor | None:
        """(N, 2) int64 token positions of a name in each text, on the host; see `KnowsPositions`."""
        return None if self._known is None else self._known.clone()  # type: ignore[return-value]

    def shared_texts(self) -> dict[str, int]:
        """Number of texts (compared as tokens) shared by each pair of splits; keys are like "meta_train and test"."""
        texts = {
            split: {self._ids_host[index].tobytes() for index in indices.tolist()}
            for split, indices in self._indices.items()
        }
        return {f"{first} and {second}": len(texts[first] & texts[second]) for first, second in combinations(texts, 2)}

    def occurring_tokens(self, indices: Tensor) -> LongTensor:
        """Sorted token ids that occur in examples (host indices of any shape), including padding; int64 on the host."""
        held = np.zeros(self._max_id + 1, dtype=bool)
        held[self._ids_host[indices.reshape(-1).numpy()]] = True
        held[self.pad_id] = True
        return torch.from_numpy(np.flatnonzero(held))  # type: ignore[return-value]

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        """Gather examples by index on the device, without synchronisation.

        Args:
            indices: (..., B) int64 on the host.
            task: task of the labels.
            pad_to: width of the batch in tokens; by default the longest of these texts, rounded up to a multiple of 8.
            coarse: round up to a power of two instead, which limits the number of widths.

        Raises:
            ValueError: if `pad_to` would truncate a text.
        """
        longest = int(self._lengths_host[indices.numpy()].max())
        if pad_to is not None and pad_to < longest:
            raise ValueError(f"pad_to is {pad_to}, but a text of the batch has {longest} tokens")
        rounded = power_of_two(round_up(longest)) if coarse else round_up(longest)
        wanted = rounded if pad_to is None else pad_to
        width = min(wanted, self.width)
        rows = self._send(indices)
        input_ids = self._input_ids[:, :width][rows]
        mask = (self._positions[:width] < self._lengths[rows].unsqueeze(-1)).long()
        if pad_to is not None and pad_to > width:
            input_ids = torch.nn.functional.pad(input_ids, (0, pad_to - width), value=self.pad_id)
            mask = torch.nn.functional.pad(mask, (0, pad_to - width))
        return Batch((input_ids, mask), self._labels[task][rows])

    def _send(self, indices: Tensor) -> Tensor:
        if self.device.type == "cuda":
            # A copy from pageable memory would synchronise with the device.
            indices = indices.pin_memory()
        return indices.to(self.device, non_blocking=True)
