"""Masked-LM pretraining of the built-in encoder on the synthetic corpus.

`python -m sdm_ray.models.pretrain --version 2` rebuilds the shipped encoder for version 2 of the synthetic world (about
six minutes on one quiet CPU thread), `--version 1` that for version 1 (about two).

The encoder is a small ModernBERT with word-level tokens, all-global attention and mean pooling, so that
`AutoModelForSequenceClassification` loads it and reuses the masked-LM head's dense layer and norm before `classifier`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from sdm_ray.config.data import VERSION_2_FIELDS, SyntheticWorld
from sdm_ray.config.io import digest
from sdm_ray.core.files import remove, replace_folder, write_bytes
from sdm_ray.data.synthetic import fingerprint, pretraining_texts, vocabulary
from sdm_ray.models.masking import (
    CLS,
    IGNORED,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    WordShares,
    corrupt_texts,
    scrubbed_ids,
    word_shares,
)
from sdm_ray.models.pretrain_settings import PretrainSettings, default_settings

logger = logging.getLogger(__name__)

SHIPPED_FOLDERS = {1: Path(__file__).parent / "builtin", 2: Path(__file__).parent / "builtin_2"}
"""Encoders of each version's default world, shipped with the package, by version of the synthetic world."""
RECORD_FILE = "sdm_ray_pretraining.json"
"""File in the folder of every built-in encoder: content hash, settings, generator fingerprint, final loss."""


class Words(NamedTuple):
    """Roles of the V words of a vocabulary in pretraining."""

    scrubbed: Tensor
    """(V,) from `scrubbed_ids`."""
    shares: WordShares | None
    """Predicted share of each word; None if all shares are equal."""


def pretraining_record(world: SyntheticWorld, settings: PretrainSettings) -> dict[str, Any]:
    """Everything that determines an encoder's weights, and a 12-digit hash of it as `content_hash`.

    The size of the task table is left out, because it does not affect the encoder.
    """
    later = VERSION_2_FIELDS if world.version == 1 else ()
    record = {
        "world": world.model_dump(mode="json", exclude={"num_examples", *later}),
        "pretraining": settings.identity(),
        "generator_fingerprint": fingerprint(world),
    }
    return {"content_hash": digest(record), **record}


def build_tokenizer(world: SyntheticWorld, max_length: int) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with every word of the world; it puts `[CLS]` and `[SEP]` around each text."""
    words = [*SPECIAL_TOKENS, *vocabulary(world)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def pretrain_builtin(world: SyntheticWorld, out_dir: Path, settings: PretrainSettings | None = None) -> dict[str, Any]:
    """Pretrain on the world's corpus and save a Hugging Face folder.

    By default about 100 s on one quiet CPU thread in version 1 of the world, six minutes in version 2.

    Args:
        world: the synthetic world.
        out_dir: target folder, created if needed: config, safetensors, tokenizer and the record.
        settings: shape and training; the default depends on the world's version.

    Returns:
        The record that was written to `sdm_ray_pretraining.json`.
    """
    settings = settings or default_settings(world)
    started = time.monotonic()
    tokenizer = build_tokenizer(world, 512)
    token_ids, mask = encode_texts(tokenizer, pretraining_texts(world), settings.max_length)
    words = Words(scrubbed_ids(tokenizer), word_shares(world, tokenizer, settings))
    model = _build_model(len(tokenizer), settings)
    loss = _train(model, token_ids, mask, words, settings)
    record = {**pretraining_record(world, settings), "final_loss": round(loss, 4)}
    out_dir.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    for file in out_dir.iterdir():  # safetensors files are only readable by their owner
        file.chmod(0o644)
    write_bytes(out_dir / RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode())
    logger.info("pretrained the built-in encoder in %.0f s, final loss %.3f", time.monotonic() - started, loss)
    return record


def _build_model(vocab_size: int, settings: PretrainSettings) -> ModernBertForMaskedLM:
    config = ModernBertConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        layer_types=["full_attention"] * settings.num_layers,
        max_position_embeddings=512,
        classifier_pooling="mean",
        pad_token_id=PAD,
        cls_token_id=CLS,
        sep_token_id=SEP,
        bos_token_id=CLS,
        eos_token_id=SEP,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ModernBertForMaskedLM(config)


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (N, L)."""
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def _optimizer(model: ModernBertForMaskedLM, settings: PretrainSettings) -> tuple[AdamW, LambdaLR]:
    """AdamW with a separate learning rate for the token embeddings; linear warm-up and decay."""
    embedding = model.get_input_embeddings().weight
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in model.parameters() if parameter is not embedding]},
        {"params": [embedding], "lr": settings.embedding_learning_rate},
    ]
    optimizer = AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
    steps = settings.num_steps
    warmup = max(steps // 10, 1)
    return optimizer, LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup + 1)))


def _train(
    model: ModernBertForMaskedLM, token_ids: Tensor, mask: Tensor, words: Words, settings: PretrainSettings
) -> float:
    """Run masked-LM training; returns the mean loss of the last tenth of the steps."""
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer, schedule = _optimizer(model, settings)
    model.train()
    losses: list[float] = []
    order = torch.empty(0, dtype=torch.long)
    for step in range(settings.num_steps):
        if len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(len(token_ids), generator=generator)])
        rows, order = order[: settings.batch_size], order[settings.batch_size :]
        length = int(mask[rows].sum(dim=1).max())
        ids, present = token_ids[rows, :length], mask[rows, :length]
        corrupted, labels = corrupt_texts(ids, words.scrubbed, settings, generator, words.shares)
        loss = _masked_lm_loss(model, corrupted, present, labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % max(settings.num_steps // 10, 1) == 0:
            logger.info("pretraining step %d of %d, loss %.3f", step + 1, settings.num_steps, losses[-1])
    last = losses[-max(settings.num_steps // 10, 1) :]
    return sum(last) / len(last)


def _masked_lm_loss(model: ModernBertForMaskedLM, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the predicted positions only, because the decoder is the most expensive layer."""
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    predicted = labels != IGNORED
    return F.cross_entropy(model.decoder(model.head(hidden[predicted])), labels[predicted])


def _main() -> None:
    """Rebuild a shipped encoder."""
    parser = argparse.ArgumentParser(prog="python -m sdm_ray.models.pretrain", description=_main.__doc__)
    parser.add_argument("--version", type=int, choices=tuple(SHIPPED_FOLDERS), default=SyntheticWorld().version)
    parser.add_argument("--seed", type=int, default=0, help="seed of the pretraining (the shipped one's is 0)")
    parser.add_argument("--out", type=Path, help="folder to write (default: the shipped one)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    world = SyntheticWorld.model_validate({"version": arguments.version})
    out = arguments.out or SHIPPED_FOLDERS[world.version]
    fresh = out.with_name(f"{out.name}.new")
    remove(fresh)
    record = pretrain_builtin(world, fresh, default_settings(world).model_copy(update={"seed": arguments.seed}))
    replace_folder(fresh, out)
    logger.info("%s holds the encoder %s", out, record["content_hash"])


if __name__ == "__main__":
    _main()
