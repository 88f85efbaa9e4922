"""How an adversary's head reads the model: the pooled features, or the last layer's token states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sdm_ray.config.adversary import HeadKind
from sdm_ray.core.types import Params
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.models.heads import attended, largest, logits, token_scores


class Encoded(NamedTuple):
    """What the trunks of A adversaries give for B examples."""

    features: Tensor
    """(A, B, D) pooled."""
    states: Tensor | None
    """(A, B, L, D) of tokens; None where heads read the pooled features."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Encoded:
        """Both of them changed in the same way."""
        return Encoded(change(self.features), None if self.states is None else change(self.states))


class Outputs(NamedTuple):
    """Outputs of A adapted models on one evaluation batch."""

    features: Tensor
    """(A, B, D): the head's input, which for `max`, whose classes read different tokens, is the pooled features."""
    logits: Tensor
    """(A, B, C)."""


def head_rows(kind: HeadKind, num_classes: int) -> int:
    """Rows of a head of C classes: one a class, and the query of `attention`."""
    return num_classes + 1 if kind == "attention" else num_classes


class HeadReader:
    """Logits of heads of one kind.

    Args:
        model: the trunk as a function.
        head_shape: (C, D), or (C + 1, D) for `attention`.
        kind: what heads read.
    """

    def __init__(self, model: FlatModel, head_shape: tuple[int, int], kind: HeadKind) -> None:
        self._model, self._kind = model, kind
        self.head_shape = head_shape
        self.num_classes = head_shape[0] - head_rows(kind, 0)
        self.reads_tokens = kind != "pooled"

    def encode(
        self, params: Params, inputs: tuple[Tensor, ...], *, shared: bool, dropout_seed: int | None = None
    ) -> Encoded:
        """What heads read; the arguments are those of `FlatModel.stacked`."""
        if self.reads_tokens:
            return Encoded(*self._model.stacked_tokens(params, inputs, shared=shared, dropout_seed=dropout_seed))
        return Encoded(self._model.stacked(params, inputs, shared=shared, dropout_seed=dropout_seed), None)

    def read(self, encoded: Encoded, head: Tensor, inputs: tuple[Tensor, ...]) -> Outputs:
        """Outputs of the adversaries' own heads (A, C, D).

        Args:
            encoded: from `encode`.
            head: the heads.
            inputs: of the batch; the second one is the mask (A or 1 or no dimension, B, L) if heads read tokens.
        """
        features, states = encoded
        if states is None:
            return Outputs(features, logits(features, head))
        mask = inputs[1]
        if self._kind == "max":
            return Outputs(features, largest(states, token_scores(states, head), mask))
        classes, query = head[..., :-1, :], head[..., -1:, :]
        pooled = attended(states, token_scores(states, query), mask)
        return Outputs(pooled, logits(pooled, classes))
