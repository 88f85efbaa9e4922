"""A linear map that all rows of a token embedding share, folded into them after every step.

A gradient with respect to the embedding moves the rows of tokens that occur in a batch. Tokens that never occur keep
what pretraining has put into them, and a linear model reads it there. With E (V, D) the embedding, G its gradient and
E (1 + A) in its place, the gradient of A at 0 is E' G (D, D): a step of A moves every row, in the direction in which
those that do occur were moved together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.core.errors import UsageError
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike


class EmbeddingMap:
    """The map A, which is 0 between two steps, and the embedding that it is folded into.

    Args:
        trunk: the encoder.
        model: its flat parameters.

    Raises:
        UsageError: for an encoder without a token embedding.
    """

    def __init__(self, trunk: TrunkLike, model: FlatModel) -> None:
        if trunk.embedding_name is None:
            raise UsageError("train.embedding_map_learning_rate is above 0, but the encoder has no token embedding")
        self._name, self._views = trunk.embedding_name, model.layout.unflatten
        width = self._of(model.initial()).shape[1]
        self.map = model.initial().new_zeros(width, width).requires_grad_()

    def gradient(self, trunk: Tensor, gradient: Tensor) -> Tensor:
        """(D, D) gradient of A at 0, from the flat trunk and its flat gradient."""
        return self._of(trunk.detach()).T @ self._of(gradient)

    @torch.no_grad()
    def fold(self, trunk: Tensor) -> None:
        """Put A into the embedding, in place, and set it to 0."""
        embedding = self._of(trunk)
        embedding += embedding @ self.map
        self.map.zero_()

    def _of(self, flat: Tensor) -> Tensor:
        return self._views(flat)[self._name]
