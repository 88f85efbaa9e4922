"""Vectors of an inner loop's moments, kept in one block.

Every vector by itself would do, were it not for the allocator: long-lived vectors between short-lived ones of the same
size leave holes, and the C library's heap then grows by half as much again as is held.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class History:
    """Copies of vectors (A, N) at some moments.

    Args:
        moments: those that will be remembered.
        like: (A, N) a vector as they will be.
    """

    def __init__(self, moments: Iterable[int], like: Tensor) -> None:
        self._slots = {moment: slot for slot, moment in enumerate(sorted(moments))}
        self._block = torch.empty(len(self._slots), *like.shape, dtype=like.dtype, device=like.device)

    def remember(self, moment: int, value: Tensor) -> Tensor:
        """The copy of a vector that is kept; the vector itself, if its moment is none of those."""
        return self.at(moment).copy_(value) if moment in self._slots else value

    def at(self, moment: int) -> Tensor:
        """The vector (A, N) of a moment, a view; autograd counts the writes to each by themselves, thanks to `data`."""
        return self._block.data[self._slots[moment]]
