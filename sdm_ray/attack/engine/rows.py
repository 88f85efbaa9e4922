"""Only the embedding rows that occur: an attacker's copy of the token embedding holds the rows of its own examples.

Adam from a zero state never moves a row whose gradient is always zero, so leaving out the rows of tokens that do not
occur changes nothing (exact also for plain SGD and momentum; not for optimisers with decay or factored moments).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROW_MULTIPLE = 32
"""The number of rows is rounded up to a multiple of this, so that few shapes occur."""


@dataclass(frozen=True)
class Rows:
    """Which rows each of S attackers holds."""

    local: Tensor
    """(S, V) position of each token in the attacker's rows; meaningless for tokens that do not occur."""
    tokens: Tensor
    """(S, R) token of each row; unused rows repeat a token at the end."""
    used: Tensor
    """(S, R) whether a row is used."""

    @classmethod
    def of(cls, input_ids: Tensor, vocab_size: int, num_fixed: int = 0) -> Rows:
        """Rows of the tokens in `input_ids` (S, ...). Reads one number back from the device.

        Args:
            input_ids: what the attackers read.
            vocab_size: V.
            num_fixed: leading tokens that keep their place whether or not they occur (`TrunkLike.fixed_ids`).
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
        """Token ids (S', ...) of the first S' attackers as positions in their rows."""
        local = self.local[: len(input_ids)]
        return local.gather(1, input_ids.flatten(1)).view_as(input_ids)

    def take(self, embedding: Tensor) -> Tensor:
        """(S, R, D) rows of a shared embedding (V, D), or of each attacker's own (S, V, D)."""
        return _rows_of(embedding, self.tokens)

    def restore(self, embedding: Tensor, rows: Tensor, attackers: slice) -> Tensor:
        """(S', V, D) full embeddings of some attackers: those they started from with their rows in place.

        Args:
            embedding: (V, D) the shared embedding, or (S', V, D) each attacker's own.
            rows: (S', R, D) rows of those attackers.
            attackers: which of the S attackers.
        """
        tokens, used = self.tokens[attackers], self.used[attackers]
        full = embedding.expand(len(tokens), *embedding.shape[-2:]).clone()
        # Unused rows were never trained: they hold the first values of their tokens, so writing them changes nothing.
        values = torch.where(used[..., None], rows, _rows_of(embedding, tokens))
        return full.scatter_(1, tokens[..., None].expand_as(values), values)


def _rows_of(embedding: Tensor, tokens: Tensor) -> Tensor:
    """(S, R, D) rows of tokens (S, R) of an embedding (V, D) or of embeddings (S, V, D)."""
    if embedding.dim() == 2:
        return embedding[tokens]
    return embedding.gather(1, tokens[..., None].expand(*tokens.shape, embedding.shape[-1]))
