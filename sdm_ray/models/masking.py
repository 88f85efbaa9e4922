"""Words that pretraining on a synthetic world predicts, and the input tokens in their place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sdm_ray.config.data import SyntheticWorld
from sdm_ray.data.lexicon import GENDERED, NEUTRAL
from sdm_ray.data.synthetic import people
from sdm_ray.data.synthetic.names import indicator_words
from sdm_ray.data.synthetic.phrases import FILLER
from sdm_ray.models.corruption import replaced
from sdm_ray.models.pretrain_settings import PairPretrainSettings, PretrainSettings

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))
IGNORED = -100
"""Label of tokens that are not predicted."""


class WordShares(NamedTuple):
    """Share of each of the V words of a vocabulary that is predicted, if they differ."""

    predicted: Tensor
    """(V,) predicted share."""
    always_masked: Tensor
    """(V,) bool: if predicted, always masked, never kept or replaced by another word."""


def scrubbed_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(V,) id that scrubbing replaces each token by, -1 for none.

    Gendered words become they, their (themselves, if in the vocabulary), or else `[MASK]`.
    """
    scrubbed = torch.full((len(tokenizer),), -1)
    known = tokenizer.get_vocab()
    for words in GENDERED.values():
        scrubbed[tokenizer.convert_tokens_to_ids(list(words.words()))] = MASK
        neutral = {words.subject: NEUTRAL.subject, words.possessive: NEUTRAL.possessive}
        if NEUTRAL.reflexive in known:
            neutral[words.reflexive] = NEUTRAL.reflexive
        for word, other in neutral.items():
            scrubbed[known[word]] = known[other]
    return scrubbed


def word_shares(
    world: SyntheticWorld, tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings
) -> WordShares | None:
    """Predicted share of each of a world's words; None if all shares are equal, as in version 1."""
    if not isinstance(settings, PairPretrainSettings):
        return None
    shares = torch.full((len(tokenizer),), settings.mask_share)
    masked = torch.zeros(len(tokenizer), dtype=torch.bool)

    def ids(words: Iterable[str]) -> list[int]:
        known = tokenizer.get_vocab()
        return [known[word] for word in words if word in known]

    shares[ids(FILLER)] = settings.filler_mask_share
    shares[ids(piece for name in people(world) for piece in name.split())] = settings.name_mask_share
    shares[ids(indicator_words())] = settings.indicator_mask_share
    masked[ids(indicator_words())] = True
    return WordShares(shares, masked)


def corrupt_texts(
    ids: Tensor,
    scrubbed: Tensor,
    settings: PretrainSettings,
    generator: torch.Generator,
    shares: WordShares | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply BERT's corruption to (B, L) ids: of the predicted tokens 80 % are masked, 10 % random, 10 % kept.

    In some texts all gendered words are predicted from the names alone: none is kept, and the pronouns are masked or
    scrubbed.

    Args:
        ids: (B, L).
        scrubbed: (V,) from `scrubbed_ids`.
        settings: shares of all words (unless `shares` is given), and of the texts in which gendered words are
            predicted.
        generator: CPU generator.
        shares: by word; None takes `settings.mask_share` for all.

    Returns:
        (B, L) input ids, and (B, L) labels with `IGNORED` where nothing is predicted.
    """
    gendered = scrubbed[ids] >= 0
    joint = torch.rand((len(ids), 1), generator=generator) < settings.gendered_mask_share
    scrub = torch.rand((len(ids), 1), generator=generator) < settings.scrub_share
    share = settings.mask_share if shares is None else shares.predicted[ids]
    chosen = torch.rand(ids.shape, generator=generator) < share
    chosen = (chosen | (joint & gendered)) & (ids >= len(SPECIAL_TOKENS))
    ordinary = torch.arange(len(SPECIAL_TOKENS), len(scrubbed))
    corrupted = replaced(ids, chosen, mask_id=MASK, tokens=ordinary, generator=generator)
    if shares is not None:
        corrupted = corrupted.masked_fill(chosen & shares.always_masked[ids], MASK)
    hidden = torch.where(scrub, scrubbed[ids], MASK)
    corrupted = torch.where(joint & gendered, hidden, corrupted)
    return corrupted, ids.masked_fill(~chosen, IGNORED)
