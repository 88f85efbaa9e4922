"""Fine-tuning with a head on token states instead of pooled features. Pooling dilutes information that is in one token
of fifteen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdm_ray.attack.families.base import Attacker, Facts, Family, fine_tuning, fine_tuning_space
from sdm_ray.attack.space import Choice, Point, Space
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.types import Params
from sdm_ray.models.heads import attended, largest
from sdm_ray.models.trunk import Trunk

POOLINGS = ("attention", "maximum")
"""Poolings: the mean of token states under a learned query's softmax weights, or each class's maximum score over
tokens."""
PREFIX = "trunk."
"""Prefix of the names of a trunk's parameters within a `TokenHeadTrunk`."""
READER_STD = 0.02


class TokenHeadTrunk(nn.Module):
    """A trunk whose features are pooled from the last hidden states (B, L, D) by a trainable matrix `reader`.

    Args:
        trunk: the trunk; it is not copied.
        pooling: one of `POOLINGS`. For `attention` the reader is one query (1, D) and the features are (B, D). For
            `maximum` it has one row per class, (C, D), and the features are the classes' scores (B, C).
        num_classes: C.
    """

    def __init__(self, trunk: Trunk, pooling: str, num_classes: int) -> None:
        super().__init__()
        self.trunk, self.pooling = trunk, pooling
        rows = 1 if pooling == "attention" else num_classes
        self.reader = nn.Parameter(torch.zeros(rows, trunk.feature_dim))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features of texts (B, L)."""
        _, states = self.trunk(input_ids, attention_mask, hidden_states=True)
        last = states[-1]
        scores = last @ self.reader.mT
        pooled = largest if self.pooling == "maximum" else attended
        return pooled(last, scores, attention_mask)

    def readers(self, generators: list[torch.Generator], like: Tensor) -> Params:
        """(S, ·, D) initial readers: Gaussian, with standard deviation `READER_STD`.

        Args:
            generators: S CPU generators, one per attacker.
            like: a tensor of the wanted dtype and device.
        """
        drawn = [torch.randn(self.reader.shape, generator=generator) * READER_STD for generator in generators]
        return {"reader": torch.stack(drawn).to(like)}


def _space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return fine_tuning_space(settings, num_examples) | {"pooling": Choice(POOLINGS)}


def _attacker(point: Point, num_examples: int) -> Attacker:
    return fine_tuning("attention_head", point, num_examples, pooling=point["pooling"])


ATTENTION_HEAD = Family(
    "attention_head",
    "full fine-tuning with a head that attends to tokens, or takes the largest of each class's scores over tokens",
    _space,
    _attacker,
    lambda facts: "" if facts.num_hidden_states else "hidden states of a transformers model",
)
