"""Settings of erasure from the residual stream."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdm_ray.config.base import NonNegativeInt, PositiveInt, Settings

DEFAULT_DIRECTIONS = 6
"""Directions that method `erase` takes out where no number is given."""


class EraseSettings(Settings):
    """Directions that tell the harmful label, found on meta-training alone and kept out of the residual stream."""

    LATER: ClassVar[frozenset[str]] = frozenset({"reads"})

    num_directions: NonNegativeInt = 0
    """Directions that are taken out, one after the other; 0 erases nothing. Method `erase` takes 6 where it is not
    given."""
    sites: tuple[NonNegativeInt, ...] = ()
    """Hidden states that readers look for directions in, 0 being the embeddings; none means all."""
    estimator: Literal["means", "leace"] = "means"
    """`means` takes out the difference of the classes' means of what a reader attends to; `leace` the covector that
    tells the classes' means apart in units of the states' covariance, and moves states as little as it can by that."""
    reach: Literal["auto", "everywhere", "below"] = "auto"
    """Where a direction is taken out: `everywhere` at every site of the stream, `below` at the site where it was found
    and of all that feeds it from below. `auto` is everywhere where layers add to the stream without a norm in it
    (ModernBERT), and below where a norm follows every addition (BERT and its kin), for there every norm above a site
    takes further dimensions of what lies below it."""
    spare_desired: NonNegativeInt = 0
    """Directions that are left: those that the means of the desired classes lie in, the widest first."""
    spare_general: NonNegativeInt = 0
    """Directions that are left: the widest of all tokens of the meta-training texts."""
    num_texts: PositiveInt = 2000
    """Texts of meta-training that readers are fitted to, at most; a quarter of them, by name where names are known,
    tells which site's reader is the best."""
    reads: bool = False
    """Whether weights that read the stream lose what they would make of the directions, too. It changes nothing of what
    the model does, but weights that were trained while the directions were there still tell what stood in them."""


__all__ = ["DEFAULT_DIRECTIONS", "EraseSettings"]
