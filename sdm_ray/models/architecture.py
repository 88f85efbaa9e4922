"""Which architectures can be a trunk, told from their configuration, before weights are loaded."""

from __future__ import annotations

from typing import Any

from sdm_ray.core.errors import UsageError
from sdm_ray.models.native import NATIVE

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What the configuration of a text encoder says."""


def check_architecture(config: Any, name: str) -> None:
    """Refuse what is no encoder of texts.

    Decoders are refused because their features would stand at a text's last token, under a causal mask, which neither
    packing nor the readers of tokens know.

    Args:
        config: configuration of a Hugging Face model.
        name: of the encoder, for the message.

    Raises:
        UsageError: for a decoder, an encoder with a decoder, and what has no such layers; it says what is supported.
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


def _is_decoder(kind: str) -> bool:
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return kind in causal and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
