"""Check from its configuration, before weights are loaded, whether an architecture can be a trunk."""

from __future__ import annotations

from typing import Any

from sdm_ray.core.errors import UsageError
from sdm_ray.models.native import NATIVE

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Required sizes in the configuration of a text encoder."""
MOST = {"hidden_size": 2**16, "num_hidden_layers": 1000, "num_attention_heads": 2**12, "vocab_size": 2**24}
"""Largest accepted sizes, far beyond those of any encoder; larger ones would only exhaust memory."""


def check_architecture(config: Any, name: str) -> None:
    """Reject a model that is not a text encoder.

    Decoders are rejected because a causal mask puts a text's feature at its last token, which neither packing nor the
    token probes support.

    Args:
        config: configuration of a Hugging Face model.
        name: name of the encoder, for the message.

    Raises:
        UsageError: for a decoder, an encoder-decoder, and a model without the required layers; it lists what is
            supported. Also for sizes below 1 or beyond `MOST`.
    """
    supported = (
        f"encoder.name takes an encoder: {', '.join(sorted(NATIVE))}, or with encoder.pooling mean or cls another "
        "masked-language-model encoder"
    )
    kind = str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"encoder.name {name!r}: model type {kind!r} is an encoder with a decoder; {supported}")
    if getattr(config, "is_decoder", False) or _is_decoder(kind):
        raise UsageError(f"encoder.name {name!r}: model type {kind!r} is a decoder; {supported}")
    missing = [needed for needed in NEEDED if not isinstance(getattr(config, needed, None), int)]
    if missing:
        raise UsageError(
            f"encoder.name {name!r}: model type {kind!r} is no transformer encoder of texts (its configuration has no "
            f"{', '.join(missing)}); {supported}"
        )
    check_sizes({size: getattr(config, size) for size in MOST}, name)


def check_sizes(values: Any, name: str) -> None:
    """Reject sizes with which no model can be built.

    Args:
        values: configuration as in its file; missing sizes, and those under other names, are not checked.
        name: name of the encoder, for the message.

    Raises:
        UsageError: for sizes that are not integers from 1 to `MOST`, and if the configuration is not a mapping.
    """
    if not isinstance(values, dict):
        raise UsageError(
            f"encoder.name {name!r}: config.json holds a {type(values).__name__}, not names with values; take another "
            "copy of the encoder"
        )
    for size, most in MOST.items():
        value = values.get(size, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UsageError(
                f"encoder.name {name!r}: config.json has {value!r} for {size}, which must be a whole number from 1 to "
                f"{most}; take another copy of the encoder"
            )


def _is_decoder(kind: str) -> bool:
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return kind in causal and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
