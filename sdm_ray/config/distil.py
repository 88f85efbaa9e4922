"""Settings of shrinking, perturbing and distilling a trained model."""

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
"""Steps of the methods that distil where no number is given."""


class Alphas(NamedTuple):
    """Shares of fresh initialisation by depth."""

    embedding: float
    lower: float
    upper: float


class AlphaByDepth(Settings):
    """Shares of fresh initialisation where they differ from `alpha`."""

    embedding: Probability | None = None
    """Of the embeddings; None takes `alpha`."""
    lower: Probability | None = None
    """Of the lower half of the layers; None takes `alpha`."""
    upper: Probability | None = None
    """Of the upper half, of what follows the layers, and of the desired head; None takes `alpha`."""


class GeneralTextSettings(Settings):
    """The general text that is distilled on beside the desired texts."""

    source: str | None = None
    """None takes the texts of meta-training, `pretraining` the corpus of the synthetic world; else a local file or
    folder (.parquet, .csv, .jsonl, .arrow) or a Hugging Face dataset id."""
    revision: str | None = None
    """Revision of a hub dataset."""
    text_column: str = "text"
    """Column that holds the text."""
    max_texts: PositiveInt = 20_000
    """Texts kept, chosen by content hash."""


class DistilSettings(Settings):
    """What follows training: every weight becomes (1 - alpha) times its own plus alpha times a freshly drawn one, and
    the model that was trained, the teacher, is distilled into that."""

    num_steps: NonNegativeInt = 0
    """Steps of distillation; 0 leaves the trained model as it is. Methods `distil` and `distilled_scratch` take 600
    where it is not given."""
    alpha: Probability = 0.5
    """Share of fresh initialisation, drawn as the architecture draws it. 0 is the teacher itself, and no step is then
    taken without adversaries; 1 is distillation from scratch."""
    alpha_by_depth: AlphaByDepth = AlphaByDepth()
    """Shares for some depths in place of `alpha`."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the trunk; optimiser, schedule, clipping and the head's rate are those of the training."""
    desired_batch_size: BatchSize = 32
    """Desired texts of a step, from meta-training; no label is read."""
    general_batch_size: NonNegativeInt = 32
    """General texts of a step; 0 distils on desired texts alone."""
    general_weight: PositiveFloat = 1.0
    """Weight of the loss on general texts; that on desired ones has 1."""
    temperature: PositiveFloat = 2.0
    """Temperature of the desired head's outputs."""
    output_weight: NonNegativeFloat = 1.0
    """Weight of the divergence between the outputs (nats at the temperature, times its square)."""
    feature_weight: NonNegativeFloat = 1.0
    """Weight of the squared distance between normalised features."""
    features: Literal["hidden_states", "pooled"] = "hidden_states"
    """`hidden_states` are those of every token behind the embeddings and each layer; `pooled` is the one vector of a
    text that heads read."""
    general: GeneralTextSettings = GeneralTextSettings()
    """The general text."""
    scrub: Literal["none", "general", "all"] = "general"
    """Which texts are read without what tells the secret: names where meta-training texts name somebody, the names and
    gendered words of the synthetic world in its corpus, capitalised words inside sentences and gendered pronouns of
    other sources. `all` are desired and general texts."""
    adversaries: bool = False
    """Whether the training's adversaries and blocking terms go on while distilling (methods `mlac` and `ac`)."""

    def alphas(self) -> Alphas:
        """Shares of fresh initialisation by depth."""
        own = self.alpha_by_depth
        return Alphas(*(self.alpha if one is None else one for one in (own.embedding, own.lower, own.upper)))

    def moves(self) -> bool:
        """Whether a step is to be taken: with every share at 0 the student is the teacher."""
        return bool(self.num_steps) and (any(self.alphas()) or self.adversaries)


__all__ = ["DEFAULT_STEPS", "AlphaByDepth", "Alphas", "DistilSettings", "GeneralTextSettings"]
