"""Native pooling: the layers of each ForSequenceClassification between hidden states and its last linear layer.

The trunk replaces that last layer by the identity and calls the classification head as a whole, so it always computes
what transformers computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdm_ray.core.errors import UsageError


class NativePooling(NamedTuple):
    """The classification layers of one architecture."""

    last_linear: str
    """Dotted name of the last linear layer within ForSequenceClassification."""
    features: Callable[[nn.Module, Any, Tensor], Tensor]
    """(model, output of its encoder, attention mask (B, L)) -> features (B, D), after the dropout that precedes the
    last linear layer (nothing in evaluation mode)."""


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of hidden states (B, L, D) over the tokens of `attention_mask` (B, L): (B, D)."""
    mask = attention_mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def cls_pool(hidden: Tensor) -> Tensor:
    """Hidden state of the first token, (B, L, D) -> (B, D)."""
    return hidden[:, 0]


def _pooler(model: Any, output: Any, attention_mask: Tensor) -> Tensor:
    pooled: Tensor = model.dropout(output.pooler_output)
    return pooled


def _classification_head(model: Any, output: Any, attention_mask: Tensor) -> Tensor:
    features: Tensor = model.classifier(output.last_hidden_state)
    return features


def _distilbert(model: Any, output: Any, attention_mask: Tensor) -> Tensor:
    pooled: Tensor = model.dropout(torch.relu(model.pre_classifier(cls_pool(output.last_hidden_state))))
    return pooled


def _modernbert(model: Any, output: Any, attention_mask: Tensor) -> Tensor:
    hidden = output.last_hidden_state
    pooled = cls_pool(hidden) if model.config.classifier_pooling == "cls" else mean_pool(hidden, attention_mask)
    features: Tensor = model.drop(model.head(pooled))
    return features


NATIVE: dict[str, NativePooling] = {
    "bert": NativePooling("classifier", _pooler),
    "distilbert": NativePooling("classifier", _distilbert),
    "electra": NativePooling("classifier.out_proj", _classification_head),
    "modernbert": NativePooling("classifier", _modernbert),
    "roberta": NativePooling("classifier.out_proj", _classification_head),
    "xlm-roberta": NativePooling("classifier.out_proj", _classification_head),
}
"""By `config.model_type`; MiniLM and BERT-Tiny are `bert`."""


def native_pooling(model_type: str) -> NativePooling:
    """Entry of `model_type` in the table.

    Raises:
        UsageError: for an architecture that is not in the table.
    """
    if model_type not in NATIVE:
        raise UsageError(
            f"encoder.pooling 'native' is not known for model type {model_type!r} "
            f"(known: {', '.join(sorted(NATIVE))}); set encoder.pooling to 'mean' or 'cls'"
        )
    return NATIVE[model_type]
