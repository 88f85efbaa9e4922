"""Settings of erasure from the residual stream."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdm_ray.config.base import NonNegativeInt, PositiveInt, Settings

DEFAULT_DIRECTIONS = 6
"""Default number of directions that method `erase` removes."""


class EraseSettings(Settings):
    """Directions that predict the harmful label, alone or in products; they are found on meta-training and removed from
    the residual stream."""

    LATER: ClassVar[frozenset[str]] = frozenset({"reads", "num_products"})

    num_directions: NonNegativeInt = 0
    """Number of directions to remove, one after the other; 0 for none. The default of method `erase` is 6."""
    num_products: NonNegativeInt = 0
    """Number of pairs of directions to remove before these, for labels that depend on the combination of a name's two
    tokens, which no single direction predicts. The search ends early when products predict the label of held-out names
    no better than chance. Needs texts with names at known positions."""
    sites: tuple[NonNegativeInt, ...] = ()
    """Hidden states in which directions are searched, 0 for the embeddings; empty for all."""
    estimator: Literal["means", "leace"] = "means"
    """`means` removes the difference of the classes' mean attended states. `leace` removes the covector that separates
    the class means relative to the states' covariance, with the smallest possible change of the states."""
    reach: Literal["auto", "everywhere", "below"] = "auto"
    """Where a direction is removed: `everywhere` at every site of the stream; `below` at the site where it was found
    and in everything below that feeds into it. `auto` is `everywhere` if layers add to the stream without a norm in it
    (ModernBERT), and `below` if a norm follows every addition (BERT and similar), because there every norm above a site
    would remove further dimensions below it."""
    spare_desired: NonNegativeInt = 0
    """Number of directions that are not removed: the principal directions of the desired classes' means."""
    spare_general: NonNegativeInt = 0
    """Number of directions that are not removed: the principal components of all tokens in meta-training texts."""
    num_texts: PositiveInt = 2000
    """Most meta-training texts to which readers are fitted. A quarter of them (of the names, if names are known) is
    held out to select the best site."""
    reads: bool = False
    """Whether to also project the weights that read the stream. The model's outputs do not change, but these weights
    were trained while the directions were present, and otherwise still depend on them."""

    def is_on(self) -> bool:
        """Whether any direction is removed."""
        return bool(self.num_directions or self.num_products)


__all__ = ["DEFAULT_DIRECTIONS", "EraseSettings"]
