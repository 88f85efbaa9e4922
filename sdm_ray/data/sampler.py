"""Batches of example indices: every example once per epoch, in a random order that a state dict restores exactly."""

from __future__ import annotations

import torch
from torch import LongTensor, Tensor


class EpochSampler:
    """An endless sampler over `indices`, reshuffled in every epoch.

    A batch may span the end of one epoch and the start of the next, so all batches have full size.

    Args:
        indices: (N,) int64 on the host.
        batch_size: B; may exceed N.
        generator: CPU generator; the sampler draws from it and `load_state_dict` sets it.
    """

    def __init__(self, indices: Tensor, batch_size: int, generator: torch.Generator) -> None:
        if indices.numel() == 0:
            raise ValueError("a sampler needs at least one index, got none")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._indices = indices.clone()
        self._batch_size = batch_size
        self._generator = generator
        self._order = self._shuffled()
        self._position = 0

    def next(self, batch_size: int | None = None) -> LongTensor:
        """The next (B,) indices, int64 on the host; `batch_size` overrides B for this call."""
        wanted = self._batch_size if batch_size is None else batch_size
        parts: list[Tensor] = []
        while wanted > 0:
            if self._position == len(self._order):
                self._order, self._position = self._shuffled(), 0
            part = self._order[self._position : self._position + wanted]
            self._position += len(part)
            wanted -= len(part)
            parts.append(part)
        return torch.cat(parts)  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Tensor]:
        """Order, position and generator state, as tensors."""
        return {
            "order": self._order.clone(),
            "position": torch.tensor(self._position),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from `state_dict`.

        Raises:
            ValueError: if the state belongs to a sampler over other indices.
        """
        order = state["order"]
        if not torch.equal(order.sort().values, self._indices.sort().values):
            raise ValueError(f"the state orders {len(order)} indices that are not this sampler's {len(self._indices)}")
        self._order = order.clone()
        self._position = int(state["position"])
        self._generator.set_state(state["generator"])

    def _shuffled(self) -> Tensor:
        return self._indices[torch.randperm(len(self._indices), generator=self._generator)]
