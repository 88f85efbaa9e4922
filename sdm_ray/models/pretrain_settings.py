"""Settings of pretraining, by version of the synthetic world."""

from __future__ import annotations

from sdm_ray.config.base import BatchSize, NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Seed, Settings
from sdm_ray.config.data import SyntheticWorld


class PretrainSettings(Settings):
    """Shape and training of the built-in encoder."""

    num_layers: PositiveInt = 2
    """Transformer layers."""
    hidden_size: PositiveInt = 64
    """Width."""
    num_heads: PositiveInt = 2
    """Attention heads."""
    intermediate_size: PositiveInt = 96
    """Width of the gated MLP."""
    num_steps: PositiveInt = 1500
    """Masked-LM steps."""
    batch_size: BatchSize = 128
    """Texts per step."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of AdamW; it rises over the first tenth of the steps and falls linearly to zero."""
    embedding_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the token embeddings. It is well below the trunk's, so that information about a name stays
    a small part of its embedding and the trunk must learn to extract it: then the trunk contains something to defend.
    """
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW."""
    mask_share: Probability = 0.15
    """Share of tokens that are predicted, sampled independently."""
    gendered_mask_share: Probability = 0.4
    """Share of texts in which all gendered words are predicted too, so that only the names reveal them."""
    scrub_share: Probability = 0.5
    """Share of those texts in which he and she are replaced by they, his and her by their, instead of `[MASK]`."""
    max_length: PositiveInt = 32
    """Maximum number of tokens per text, including special tokens."""
    seed: Seed = 0
    """Seed of initialisation, order and masks."""


class PairPretrainSettings(PretrainSettings):
    """Settings for version 2: its two-token names need more steps, and predicted shares differ between words."""

    num_steps: PositiveInt = 3000
    """Masked-LM steps."""
    embedding_learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of the token embeddings."""
    gendered_mask_share: Probability = 0.5
    """Share of texts in which all gendered words are predicted too, so that only the names reveal them."""
    name_mask_share: Probability = 0.03
    """Share of name tokens that are predicted: small, because other words are predicted from them."""
    filler_mask_share: Probability = 0.05
    """Share of the words of phrases that are predicted: small, because they are easy to predict."""
    indicator_mask_share: Probability = 0.6
    """Share of indicator words that are predicted; these are always masked."""
    max_length: PositiveInt = 40
    """Maximum number of tokens per text, including special tokens."""


def default_settings(world: SyntheticWorld) -> PretrainSettings:
    """Default pretraining settings of a world's encoder."""
    return PretrainSettings() if world.version == 1 else PairPretrainSettings()
