"""Only the embedding rows that occur: an attacker's copy of the token embedding holds the rows of its own examples.

Adam from a zero state never moves a row whose gradient is always zero, so leaving out the rows of tokens that do not
occur changes nothing (exact also for plain SGD and momentum; not for optimisers with decay or factored moments).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROW_MULTIPLE = 32
"""The number of rows is rounded up to a multiple of this, so that few shapes occur."""


def token_embedding_name(trunk: nn.Module) -> str | None:
    """Name of the trunk's token embedding among its parameters; None where it cannot be told."""
    model: Any = getattr(trunk, "hf_model", None)
    if model is None:
        return None
    weight = model.get_input_embeddings().weight
    return next((name for name, value in trunk.named_parameters() if value is weight), None)


def without_padding_index(trunk: nn.Module) -> nn.Module:
    """A copy whose token embedding treats the padding token as any other.

    `nn.Embedding.padding_idx` names a row of the full matrix and would point at another token's row of a restricted
    one. The padding token needs no special case: masked positions have a gradient of exactly zero.
    """
    clone: Any = copy.deepcopy(trunk)
    clone.hf_model.get_input_embeddings().padding_idx = None
    return clone  # type: ignore[no-any-return]


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
    def of(cls, input_ids: Tensor, vocab_size: int) -> Rows:
        """Rows of the tokens in `input_ids` (S, ...). Reads one number back from the device."""
        ids = input_ids.flatten(1)
        present = torch.zeros(len(ids), vocab_size, dtype=torch.bool, device=ids.device)
        present.scatter_(1, ids, torch.ones_like(ids, dtype=torch.bool))
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
        """(S, R, D) rows of a shared embedding (V, D)."""
        return embedding[self.tokens]

    def restore(self, embedding: Tensor, rows: Tensor, attackers: slice) -> Tensor:
        """(S', V, D) full embeddings of some attackers: the shared one with their rows in place.

        Args:
            embedding: (V, D) the shared embedding.
            rows: (S', R, D) rows of those attackers.
            attackers: which of the S attackers.
        """
        tokens, used = self.tokens[attackers], self.used[attackers]
        full = embedding.expand(len(tokens), *embedding.shape).clone()
        # Unused rows were never trained: they hold the shared values of their tokens, so writing them changes nothing.
        values = torch.where(used[..., None], rows, embedding[tokens])
        return full.scatter_(1, tokens[..., None].expand_as(values), values)
