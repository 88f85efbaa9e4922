"""Types shared by several layers.

Shapes use B (batch), L (tokens), D (features), C (classes), K (inner steps). This module contains no computation.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Params: TypeAlias = "dict[str, Tensor]"
"""Named parameters of a trunk, as `torch.func.functional_call` takes them."""


class Task(StrEnum):
    """The task, which selects one of an example's labels."""

    DESIRED = "desired"
    HARMFUL = "harmful"


class Split(StrEnum):
    """The four splits, disjoint by content hash (and by group if there is a group column)."""

    META_TRAIN = "meta_train"
    ATTACKER_TRAIN = "attacker_train"
    ATTACKER_VAL = "attacker_val"
    TEST = "test"


class Batch(NamedTuple):
    """Examples of one task on the device."""

    inputs: tuple[Tensor, ...]
    """Inputs of the trunk's `forward`, each (..., B, ·): token ids and mask of texts, or vectors, or images."""
    labels: Tensor
    """(..., B) int64 class indices, or floating-point targets of a regression."""

    @property
    def input_ids(self) -> Tensor:
        """(..., B, L) int64 token ids of texts."""
        return self.inputs[0]

    @property
    def attention_mask(self) -> Tensor:
        """(..., B, L) int64, 1 on the tokens of texts and 0 on padding."""
        return self.inputs[1]

    def at(self, index: Any) -> Batch:
        """Batch at an index (or slice) of the leading dimensions."""
        return Batch(tuple(value[index] for value in self.inputs), self.labels[index])
