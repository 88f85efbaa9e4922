"""A token embedding restricted to the rows that occur, and how far up the encoder each parameter lies.

An optimiser that treats every element by itself never moves a row that does not occur, so training may hold the rows
of its own texts alone, with token ids renumbered to match. This is sound where ids do nothing but pick rows. BERT,
ELECTRA, DistilBERT and ModernBERT are so. RoBERTa and XLM-RoBERTa also derive positions from `input_ids !=
padding_idx`: there the padding token, and the few before it, must keep their numbers. Of other architectures nothing
is known, and theirs are not restricted.
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
    """Leading token ids that a renumbering must leave as they are; None where ids may not be renumbered at all.

    Args:
        config: configuration of a Hugging Face encoder.
    """
    if config.model_type in _ANY_RENUMBERING:
        return 0
    if config.model_type in _POSITIONS_FROM_PADDING and config.pad_token_id < _MOST_FIXED_IDS:
        return int(config.pad_token_id) + 1
    return None


def token_embedding_name(module: nn.Module, hf_model: Any) -> str | None:
    """Name of the token embedding among the parameters of a module that holds a Hugging Face model.

    Returns:
        None where it cannot be restricted: ids may not be renumbered, or the matrix serves elsewhere too.
    """
    if num_fixed_ids(hf_model.config) is None:
        return None
    weight = hf_model.get_input_embeddings().weight
    names = [name for name, value in module.named_parameters(remove_duplicate=False) if value is weight]
    return names[0] if len(names) == 1 else None


def drop_padding_index(hf_model: Any) -> int | None:
    """Make the token embedding treat the padding token as any other, in place.

    `nn.Embedding.padding_idx` withholds the gradient from a row by its number, which is another token's in a
    restricted matrix. The padding token needs no such care: masked positions have a gradient of exactly zero.

    Returns:
        The former `padding_idx`.
    """
    embedding = hf_model.get_input_embeddings()
    index: int | None = embedding.padding_idx
    embedding.padding_idx = None
    return index


def depths_of(names: Iterable[str]) -> dict[str, int]:
    """Depth of each parameter of an encoder with L layers, read from its dotted name.

    0 is the embeddings and their projection, i + 1 is layer i, and L + 1 is all else (a final norm, a pooler, a
    classification head). Without numbered layers all has depth 0.
    """
    layers = {name: int(match[1]) + 1 if (match := _LAYER.search(name)) else None for name in names}
    highest = max((depth for depth in layers.values() if depth is not None), default=-1)
    outside = {name: 0 if ".embed" in name else highest + 1 for name in layers}
    return {name: outside[name] if depth is None else depth for name, depth in layers.items()}
