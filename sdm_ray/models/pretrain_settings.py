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
    """Texts of a step."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of AdamW; it rises over the first tenth of the steps and falls linearly to zero."""
    embedding_learning_rate: PositiveFloat = 1e-3
    """The same for the token embeddings. Well below the trunk's, so that what is known about a name stays a small part
    of its embedding, which the trunk must learn to read out: then there is something in the trunk to defend."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW."""
    mask_share: Probability = 0.15
    """Share of tokens that are predicted, drawn token by token."""
    gendered_mask_share: Probability = 0.4
    """Share of texts in which all gendered words are predicted as well, so that only the names tell them."""
    scrub_share: Probability = 0.5
    """Share of those texts in which he and she are read as they, his and her as their, instead of `[MASK]`."""
    max_length: PositiveInt = 32
    """Tokens kept of a text, special tokens included."""
    seed: Seed = 0
    """Seed of initialisation, order and masks."""


class PairPretrainSettings(PretrainSettings):
    """The same for version 2, whose names of two pieces take more steps, and whose words are not predicted alike."""

    num_steps: PositiveInt = 3000
    """Masked-LM steps."""
    embedding_learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of the token embeddings."""
    gendered_mask_share: Probability = 0.5
    """Share of texts in which all gendered words are predicted as well, so that only the names tell them."""
    name_mask_share: Probability = 0.03
    """Share of names and their pieces that are predicted: small, since the other words are predicted from them."""
    filler_mask_share: Probability = 0.05
    """Share of the words of phrases that are predicted: small, since they are easy to predict."""
    indicator_mask_share: Probability = 0.6
    """Share of indicator words that are predicted; those are always masked."""
    max_length: PositiveInt = 40
    """Tokens kept of a text, special tokens included."""


def default_settings(world: SyntheticWorld) -> PretrainSettings:
    """The default pretraining settings of a world's encoder."""
    return PretrainSettings() if world.version == 1 else PairPretrainSettings()
