"""Token embeddings restricted to the rows that occur, and the depth of each parameter in the encoder.

An elementwise optimiser never moves a row that does not occur, so training can hold only the rows of its own texts,
with renumbered token ids. This is valid if ids are only used to look up rows, as in BERT, ELECTRA, DistilBERT and
ModernBERT. RoBERTa and XLM-RoBERTa also derive positions from `input_ids != padding_idx`, so the padding token and the
few ids before it must keep their numbers. Embeddings of other architectures are not restricted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

_ANY_RENUMBERING = {"bert", "distilbert", "electra", "modernbert"}
_POSITIONS_FROM_PADDING = {"roberta", "xlm-roberta"}
_MOST_FIXED_IDS = 64
"""With a larger padding id a restricted embedding would hold too many unused rows."""
_LAYER = re.compile(r"\.layers?\.(\d+)\.")


def num_fixed_ids(config: Any) -> int | None:
    """Number of leading token ids that a renumbering must keep; None if ids must not be renumbered at all.

    Args:
        config: configuration of a Hugging Face encoder.
    """
    if config.model_type in _ANY_RENUMBERING:
        return 0
    if config.model_type in _POSITIONS_FROM_PADDING and config.pad_token_id < _MOST_FIXED_IDS:
        return int(config.pad_token_id) + 1
    return None


def token_embedding_name(module: nn.Module, hf_model: Any) -> str | None:
    """Parameter name of the token embedding in a module that contains a Hugging Face model.

    Returns:
        None if it cannot be restricted: ids may not be renumbered, or the matrix is shared.
    """
    if num_fixed_ids(hf_model.config) is None:
        return None
    weight = hf_model.get_input_embeddings().weight
    names = [name for name, value in module.named_parameters(remove_duplicate=False) if value is weight]
    return names[0] if len(names) == 1 else None


def drop_padding_index(hf_model: Any) -> int | None:
    """Treat the padding token like any other in the token embedding, in place.

    `nn.Embedding.padding_idx` blocks the gradient of a row by its number, which belongs to another token in a
    restricted matrix. The padding token does not need it: the gradient at masked positions is exactly zero.

    Returns:
        Previous `padding_idx`.
    """
    embedding = hf_model.get_input_embeddings()
    index: int | None = embedding.padding_idx
    embedding.padding_idx = None
    return index


def depths_of(names: Iterable[str]) -> dict[str, int]:
    """Depth of each parameter of an encoder with L layers, read from its dotted name.

    0 is the embeddings and their projection, i + 1 is layer i, and L + 1 is everything else (a final norm, a pooler, a
    classification head). Without numbered layers every depth is 0.
    """
    layers = {name: int(match[1]) + 1 if (match := _LAYER.search(name)) else None for name in names}
    highest = max((depth for depth in layers.values() if depth is not None), default=-1)
    outside = {name: 0 if ".embed" in name else highest + 1 for name in layers}
    return {name: outside[name] if depth is None else depth for name, depth in layers.items()}
