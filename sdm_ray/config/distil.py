"""Settings for shrink-and-perturb and distillation of a trained model."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sdm_ray.config.base import (
    BatchSize,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Settings,
)

DEFAULT_STEPS = 600
"""Default number of steps for the methods that distil."""


class Alphas(NamedTuple):
    """Shares of fresh initialisation by depth."""

    embedding: float
    lower: float
    upper: float


class AlphaByDepth(Settings):
    """Shares of fresh initialisation by depth, in place of `alpha`."""

    embedding: Probability | None = None
    """Share for the embeddings; None takes `alpha`."""
    lower: Probability | None = None
    """Share for the lower half of the layers; None takes `alpha`."""
    upper: Probability | None = None
    """Share for the upper half, everything after the layers, and the desired head; None takes `alpha`."""


class GeneralTextSettings(Settings):
    """General text for distillation, in addition to the desired texts."""

    source: str | None = None
    """None takes the texts of meta-training, `pretraining` the corpus of the synthetic world; otherwise a local file or
    folder (.parquet, .csv, .jsonl, .arrow) or a Hugging Face dataset id."""
    revision: str | None = None
    """Revision of a hub dataset."""
    text_column: str = "text"
    """Column that holds the text."""
    max_texts: PositiveInt = 20_000
    """Texts kept, chosen by content hash."""


class DistilSettings(Settings):
    """Distillation after training: the student starts at (1 - alpha) times the trained weights plus alpha times fresh
    ones, and the trained model is its teacher."""

    num_steps: NonNegativeInt = 0
    """Steps of distillation; 0 leaves the trained model unchanged. The default of the methods `distil` and
    `distilled_scratch` is 600."""
    alpha: Probability = 0.5
    """Share of fresh initialisation, sampled by the architecture's own initialiser. 0 is the teacher itself (without
    adversaries no step is taken then); 1 is distillation from scratch."""
    alpha_by_depth: AlphaByDepth = AlphaByDepth()
    """Shares by depth, in place of `alpha`."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the trunk; optimiser, schedule, clipping and the head's learning rate are the training's."""
    desired_batch_size: BatchSize = 32
    """Desired texts per step, from meta-training; their labels are not used."""
    general_batch_size: NonNegativeInt = 32
    """General texts per step; 0 uses desired texts only."""
    general_weight: PositiveFloat = 1.0
    """Weight of the loss on general texts; the weight on desired texts is 1."""
    temperature: PositiveFloat = 2.0
    """Temperature for the desired head's outputs."""
    output_weight: NonNegativeFloat = 1.0
    """Weight of the KL divergence between outputs (in nats, times the squared temperature)."""
    feature_weight: NonNegativeFloat = 1.0
    """Weight of the squared distance between normalised features."""
    features: Literal["hidden_states", "pooled"] = "hidden_states"
    """`hidden_states`: those of every token after the embeddings and each layer; `pooled`: the pooled vector, the input
    of the heads."""
    general: GeneralTextSettings = GeneralTextSettings()
    """The general text."""
    scrub: Literal["none", "general", "all"] = "general"
    """Texts from which clues to the harmful label are removed: names in meta-training texts, names and gendered words
    in the synthetic world's corpus, capitalised words in sentences and gendered pronouns in other sources. `all` is
    desired and general texts."""
    adversaries: bool = False
    """Whether the training's adversaries and blocking terms continue during distillation (methods `mlac` and `ac`)."""

    def alphas(self) -> Alphas:
        """Shares of fresh initialisation by depth."""
        own = self.alpha_by_depth
        return Alphas(*(self.alpha if one is None else one for one in (own.embedding, own.lower, own.upper)))

    def moves(self) -> bool:
        """Whether any step is needed: if all shares are 0, the student is the teacher."""
        return bool(self.num_steps) and (any(self.alphas()) or self.adversaries)


__all__ = ["DEFAULT_STEPS", "AlphaByDepth", "Alphas", "DistilSettings", "GeneralTextSettings"]
