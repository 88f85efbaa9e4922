"""Restricted token embeddings: an attacker's copy contains only the rows of tokens that occur in its examples.

Adam with zero initial moments does not change a row whose gradient is always zero. Leaving out rows of tokens that do
not occur therefore does not change the result. (This is also exact for SGD and momentum, but not for optimisers with
weight decay or factored moments.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROW_MULTIPLE = 32
"""The number of rows is rounded up to a multiple of this, so that few shapes occur."""


@dataclass(frozen=True)
class Rows:
    """The rows of each of S attackers."""

    local: Tensor
    """(S, V) position of each token in the attacker's rows; arbitrary for tokens that do not occur."""
    tokens: Tensor
    """(S, R) token of each row; unused rows repeat a token at the end."""
    used: Tensor
    """(S, R) whether a row is used."""

    @classmethod
    def of(cls, input_ids: Tensor, vocab_size: int, num_fixed: int = 0) -> Rows:
        """The rows of the tokens in `input_ids`. Synchronises with the device once.

        Args:
            input_ids: (S, ...) token ids in the attackers' examples.
            vocab_size: V.
            num_fixed: token ids below this keep their row, whether or not they occur (`TrunkLike.fixed_ids`).
        """
        ids = input_ids.flatten(1)
        present = torch.zeros(len(ids), vocab_size, dtype=torch.bool, device=ids.device)
        present.scatter_(1, ids, torch.ones_like(ids, dtype=torch.bool))
        present[:, :num_fixed] = True
        counts = present.sum(1)
        size = min(-(-int(counts.max()) // ROW_MULTIPLE) * ROW_MULTIPLE, vocab_size)
        tokens = present.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :size]
        used = torch.arange(size, device=ids.device) < counts[:, None]
        return cls(local=present.cumsum(1) - 1, tokens=tokens, used=used)

    def localise(self, input_ids: Tensor) -> Tensor:
        """Convert token ids (S', ...) of the first S' attackers to positions in their rows."""
        local = self.local[: len(input_ids)]
        return local.gather(1, input_ids.flatten(1)).view_as(input_ids)

    def take(self, embedding: Tensor) -> Tensor:
        """(S, R, D) rows of a shared embedding (V, D), or of each attacker's own (S, V, D)."""
        return _rows_of(embedding, self.tokens)

    def restore(self, embedding: Tensor, rows: Tensor, attackers: slice) -> Tensor:
        """(S', V, D) full embeddings of some attackers: the initial embedding with their trained rows written into it.

        Args:
            embedding: (V, D) shared initial embedding, or (S', V, D) each attacker's own.
            rows: (S', R, D) trained rows of those attackers.
            attackers: slice of the S attackers.
        """
        tokens, used = self.tokens[attackers], self.used[attackers]
        full = embedding.expand(len(tokens), *embedding.shape[-2:]).clone()
        # Unused rows repeat tokens; they get the initial values, so writing them changes nothing.
        values = torch.where(used[..., None], rows, _rows_of(embedding, tokens))
        return full.scatter_(1, tokens[..., None].expand_as(values), values)


def _rows_of(embedding: Tensor, tokens: Tensor) -> Tensor:
    """(S, R, D) rows of tokens (S, R) of an embedding (V, D) or of embeddings (S, V, D)."""
    if embedding.dim() == 2:
        return embedding[tokens]
    return embedding.gather(1, tokens[..., None].expand(*tokens.shape, embedding.shape[-1]))
