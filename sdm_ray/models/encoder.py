"""Encoders and tokenizers by hub id, by local folder, or built in.

Weights are only read from safetensors and code is only that of transformers (`trust_remote_code` stays off).
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from sdm_ray.config import EncoderSettings, SyntheticWorld
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.hub import brief
from sdm_ray.core.types import Params
from sdm_ray.models.architecture import check_architecture, check_sizes
from sdm_ray.models.hub import (
    NEW_WEIGHTS_SEED,
    check_weights_file,
    fetch,
    keep_layers,
    quiet,
    resolve,
    seeded,
)
from sdm_ray.models.native import NATIVE, native_pooling
from sdm_ray.models.pooling import choose_pooling
from sdm_ray.models.trunk import Pooling, Trunk, params_digest


def load_tokenizer(settings: EncoderSettings, *, cache_dir: Path, world: SyntheticWorld | None = None) -> Any:
    """Load the encoder's fast tokenizer; arguments as in `load_trunk`.

    Raises:
        UsageError: for a folder without tokenizer files, or a tokenizer without a fast version or a padding token.
        RunError: if the hub cannot be reached or does not have the encoder.
    """
    source = resolve(settings, cache_dir, world)
    _config(settings, source)  # a decoder lacks a padding token too; report the architecture
    try:
        tokenizer = fetch(source, settings.revision, AutoTokenizer.from_pretrained)
    except (ValueError, KeyError, ImportError) as error:
        raise UsageError(f"encoder.name {settings.name!r}: its tokenizer cannot be loaded: {brief(error)}") from None
    if not tokenizer.is_fast:
        raise UsageError(
            f"encoder.name {settings.name!r} has no fast tokenizer (tokenizer.json); add one or choose another"
        )
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"encoder.name {settings.name!r}: its tokenizer has no padding token; add one or choose another"
        )
    return tokenizer


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) of a fast tokenizer's behaviour, without its current padding and truncation."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("padding", None)
    backend.pop("truncation", None)
    text = json.dumps([backend, tokenizer.pad_token_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_trunk(
    settings: EncoderSettings,
    *,
    cache_dir: Path,
    world: SyntheticWorld | None = None,
    initialisation: Literal["pretrained", "random"] = "pretrained",
    seed: int = 0,
) -> Trunk:
    """Load the encoder in float32 on the CPU, with eager attention, for `functional_call`, `vmap` and double backward.

    Global random state is preserved.

    Args:
        settings: the encoder.
        cache_dir: cache of the built-in encoder.
        world: the synthetic world whose corpus the built-in encoder was trained on; None is the default world.
        initialisation: `random` keeps the architecture and initialises every weight, including embeddings, as
            transformers does.
        seed: seed of `random`; pretrained weights do not depend on it.

    Raises:
        UsageError: for a folder without configuration, weights or safetensors, weights that are NaN or infinite, an
            unsupported architecture, more layers than there are, or `native` pooling of an architecture without it.
        RunError: if the hub cannot be reached or does not have the encoder.
    """
    settings = choose_pooling(settings).encoder
    pooling = _settled(settings)
    source = resolve(settings, cache_dir, world)
    config = _config(settings, source)
    if pooling == "native":
        native_pooling(config.model_type)
    keep_layers(config, settings)
    with seeded(seed if initialisation == "random" else NEW_WEIGHTS_SEED), quiet():
        if initialisation == "random":
            model = _random_model(config, settings)
        else:
            model = _pretrained_model(config, source, settings)
    trunk = Trunk(model, pooling)
    _check_finite(trunk, settings.name)
    if trunk.model_type not in NATIVE:
        _check_masks(trunk, settings.name)
    return trunk


def _check_finite(trunk: Trunk, name: str) -> None:
    """Reject weights that are NaN or infinite."""
    for parameter, value in trunk.named_parameters():
        broken = value.numel() - int(value.isfinite().sum())
        if broken:
            raise UsageError(
                f"encoder {name}: {broken} of {value.numel()} values of {parameter} are NaN or infinite; "
                "take another copy of it"
            )


def fresh_params(trunk: Trunk, seed: int) -> Params:
    """Initialise weights of a trunk's architecture on the CPU as transformers does. Global random state is preserved.

    Args:
        trunk: the architecture.
        seed: seed of the initialisation.
    """
    config = copy.deepcopy(trunk.hf_model.config)
    config.num_labels = 2
    with seeded(seed), quiet():
        model = _auto_class(trunk.pooling).from_config(config, attn_implementation="eager", dtype=torch.float32)
    return {name: value.detach() for name, value in Trunk(model, trunk.pooling).named_parameters()}


def _config(settings: EncoderSettings, source: str | Path) -> Any:
    """Load the configuration of an encoder that can be a trunk."""
    if isinstance(source, Path):  # before transformers builds a list of all layers
        try:
            values = json.loads((source / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # `fetch` reports this better
            values = {}
        check_sizes(values, settings.name)
    try:
        config = fetch(source, settings.revision, AutoConfig.from_pretrained)
    except (UsageError, RunError):
        raise
    except Exception as error:  # transformers' errors have no common base
        hint = '; add "model_type", such as "bert", to it' if "model_type" in str(error) else ""
        raise UsageError(f"encoder.name {settings.name!r}: config.json is not usable: {brief(error)}{hint}") from None
    check_architecture(config, settings.name)
    return config


def _settled(settings: EncoderSettings) -> Pooling:
    assert settings.pooling != "auto"
    return settings.pooling


def _auto_class(pooling: Pooling) -> Any:
    return AutoModelForSequenceClassification if pooling == "native" else AutoModel


def _random_model(config: Any, settings: EncoderSettings) -> Any:
    config = copy.deepcopy(config)
    config.num_labels = 2  # the classifier must not affect the draws
    try:
        return _auto_class(_settled(settings)).from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of configurations it does not expect
        raise UsageError(f"encoder.name {settings.name!r} cannot be built: {brief(error)}") from None


def _pretrained_model(config: Any, source: str | Path, settings: EncoderSettings) -> Any:
    if isinstance(source, Path):
        check_weights_file(source)
    try:
        model, info = fetch(
            source,
            settings.revision,
            _auto_class(_settled(settings)).from_pretrained,
            config=copy.deepcopy(config),
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (UsageError, RunError):
        raise
    except Exception as error:  # safetensors, shape and architecture errors have no common base
        raise UsageError(f"encoder.name {settings.name!r}: its weights cannot be loaded: {brief(error)}") from None
    encoder = [key for key in info["missing_keys"] if _is_encoder_weight(model, _settled(settings), key)]
    if encoder:
        raise UsageError(
            f"encoder.name {settings.name!r}: {len(encoder)} of its weights are missing from the safetensors file "
            f"(first: {sorted(encoder)[0]}); the folder does not hold a trained {config.model_type} encoder"
        )
    return model


def _is_encoder_weight(model: Any, pooling: Pooling, key: str) -> bool:
    """Whether a weight belongs to the encoder rather than to a pooler or a head, which checkpoints often lack."""
    prefix = model.base_model_prefix + "." if pooling == "native" else ""
    return key.startswith(prefix) and not key.removeprefix(prefix).startswith("pooler.")


def _check_masks(trunk: Trunk, name: str) -> None:
    """Check an architecture outside the table: the 4-D mask must act like a 2-D one, and every weight must be used.

    Padding must not change features either, as it does through convolutions (ConvBERT) and landmarks (Nyströmformer).
    """
    ids = torch.arange(1, 13).reshape(2, 6) % trunk.vocab_size
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    independent = True
    try:
        features = trunk(ids, mask)
        plain = trunk.hf_model(input_ids=ids, attention_mask=mask).last_hidden_state
        wanted = plain[:, 0] if trunk.pooling == "cls" else (plain * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        torch.autograd.grad(features.sum(), list(trunk.parameters()))
        works = torch.allclose(features, wanted, atol=1e-4, rtol=1e-4)
        other = torch.where(mask == 1, ids, (ids + 5) % trunk.vocab_size)
        wider = max(0, min(12, trunk.max_length) - 6)
        padded = trunk(F.pad(other, (0, wider)), F.pad(mask, (0, wider)))
        independent = torch.allclose(features, padded, atol=1e-4, rtol=1e-4)
    except Exception:  # an unknown architecture may raise anything
        works = False
    advice = f"known to work: {', '.join(sorted(NATIVE))}; take one of these"
    if not works:
        raise UsageError(
            f"encoder.name {name!r}: model type {trunk.model_type!r} does not work with a prebuilt attention mask; "
            f"{advice}"
        )
    if not independent:
        raise UsageError(
            f"encoder.name {name!r}: in model type {trunk.model_type!r} padding changes the features of a text, so "
            f"results would depend on the other texts of a batch; {advice}"
        )


__all__ = ["Pooling", "Trunk", "fresh_params", "load_tokenizer", "load_trunk", "params_digest", "tokenizer_digest"]
