"""The masked-LM head with which an encoder was pretrained.

In every supported architecture the decoder's weight is tied to the token embedding. It is read from the trunk's
parameters at each call, so that the embedding gets gradients from the input and from the decoder. The layers between
the hidden states and the decoder, and the decoder's bias, are frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM

from sdm_ray.config import EncoderSettings, SyntheticWorld
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.hub import brief
from sdm_ray.models import hub
from sdm_ray.models.trunk import Trunk

TRANSFORMS: dict[str, Callable[[Any], nn.Module]] = {
    "bert": lambda model: model.cls.predictions.transform,
    "distilbert": lambda model: nn.Sequential(model.vocab_transform, model.activation, model.vocab_layer_norm),
    "electra": lambda model: model.generator_predictions,
    "modernbert": lambda model: model.head,
    "roberta": lambda model: nn.Sequential(model.lm_head.dense, nn.GELU(), model.lm_head.layer_norm),
    "xlm-roberta": lambda model: nn.Sequential(model.lm_head.dense, nn.GELU(), model.lm_head.layer_norm),
}
"""By `config.model_type`: the layers of ForMaskedLM between the hidden states and the decoder."""


class MaskedLmHead(nn.Module):
    """A frozen masked-LM head: logits over the vocabulary.

    Args:
        transform: module from hidden states (..., D) to (..., E).
        bias: (V,) bias of the decoder; None if it has none.
        mask_id: id of the mask token.
        special: (V,) bool on the host, true for tokens that are never predicted.
    """

    bias: Tensor | None

    def __init__(self, transform: nn.Module, bias: Tensor | None, *, mask_id: int, special: Tensor) -> None:
        super().__init__()
        self.transform = transform
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.mask_id, self.special = mask_id, special
        self.requires_grad_(False)
        self.eval()

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Logits (..., V) from last hidden states (..., D) and the trunk's token embedding (V, E)."""
        return nn.functional.linear(self.transform(hidden), embedding, self.bias)


def load_masked_lm(
    settings: EncoderSettings, tokenizer: Any, *, cache_dir: Path, world: SyntheticWorld | None = None
) -> MaskedLmHead:
    """Load an encoder's masked-LM head, in float32 on the CPU.

    Args:
        settings: the encoder settings.
        tokenizer: the encoder's tokenizer.
        cache_dir: folder of the built-in encoder.
        world: the synthetic world on whose corpus the built-in encoder was pretrained; None for the default world.

    Raises:
        UsageError: for an encoder without such a head (an ELECTRA discriminator, a fine-tuned classifier), without a
            mask token or of an unknown architecture, and for what `load_trunk` rejects.
        RunError: if the hub cannot be reached or does not have the encoder.
    """
    source = hub.resolve(settings, cache_dir, world)
    if tokenizer.mask_token_id is None:
        raise _refusal(settings, "its tokenizer has no mask token")
    try:
        config = hub.fetch(source, settings.revision, AutoConfig.from_pretrained)
    except (ValueError, KeyError) as error:
        raise UsageError(f"encoder.name {settings.name!r}: config.json is not usable: {brief(error)}") from None
    if config.model_type not in TRANSFORMS:
        raise _refusal(settings, f"model type {config.model_type!r} is not one of {', '.join(TRANSFORMS)}")
    hub.keep_layers(config, settings)
    model = _pretrained_model(config, source, settings)
    decoder = model.get_output_embeddings()
    if decoder.weight is not model.get_input_embeddings().weight:
        raise _refusal(settings, "its decoder is not tied to its token embedding")
    special = torch.zeros(int(config.vocab_size), dtype=torch.bool)
    special[[index for index in tokenizer.all_special_ids if index < len(special)]] = True
    return MaskedLmHead(
        TRANSFORMS[config.model_type](model), decoder.bias, mask_id=int(tokenizer.mask_token_id), special=special
    )


def word_embedding_name(trunk: Trunk) -> str:
    """Parameter name of a trunk's token embedding (V, E)."""
    weight = trunk.hf_model.get_input_embeddings().weight
    return next(name for name, value in trunk.named_parameters() if value is weight)


def _pretrained_model(config: Any, source: str | Path, settings: EncoderSettings) -> Any:
    if isinstance(source, Path):
        hub.check_weights_file(source)
    try:
        with hub.seeded(hub.NEW_WEIGHTS_SEED):
            model, info = hub.fetch(
                source,
                settings.revision,
                AutoModelForMaskedLM.from_pretrained,
                config=copy.deepcopy(config),
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (UsageError, RunError):
        raise
    except Exception as error:  # safetensors, shape and architecture errors have no common base
        raise UsageError(f"encoder.name {settings.name!r}: its weights cannot be loaded: {brief(error)}") from None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(f"{model.base_model_prefix}."))
    if missing:
        kind = " (an ELECTRA discriminator has none)" if config.model_type == "electra" else ""
        raise _refusal(settings, f"its checkpoint holds no masked-LM head{kind}; first missing: {missing[0]}")
    return model


def _refusal(settings: EncoderSettings, reason: str) -> UsageError:
    return UsageError(
        f"train.blocking.retain_mlm does not work with encoder.name {settings.name!r}: {reason}; set its weight to 0 "
        "(retain_distill needs no head) or choose another encoder"
    )
