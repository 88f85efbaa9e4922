"""Settings for the weights that simulated adversaries start from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from sdm_ray.config.base import LogRange, NonNegativeFloat, PositiveFloat, PositiveInt, Settings
from sdm_ray.config.support import RELEASED

StartKind = Literal["released", "rescaled", "redrawn_layers", "pruned", "interpolated", "noise", "benign_first"]
"""The current weights, or an edit of them."""

ATTACK_EDITS: dict[StartKind, str] = {
    "released": RELEASED,
    "rescaled": "rescale_columns+rescale_gains",
    "redrawn_layers": "reinit",
    "pruned": "prune",
    "interpolated": "interpolate",
    "noise": "noise",
    "benign_first": "benign_first",
}
"""The attack's name of each edit."""

Exponent = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class StartOption(NamedTuple):
    """One kind of start with a positive weight."""

    kind: StartKind
    weight: float
    amounts: tuple[float, ...]
    """Strengths of the edit, sampled uniformly."""


class StartSettings(Settings):
    """Weights that an adversary starts from: kinds are sampled in proportion to the numbers below."""

    LATER: ClassVar[frozenset[str]] = frozenset({"benign_first", "benign_first_steps", "benign_first_learning_rate"})

    released: NonNegativeFloat = 1.0
    """Weight of starting from the current weights, unedited."""
    rescaled: NonNegativeFloat = 0.0
    """Weight of rescaling: columns of the token embedding are centred and scaled to equal size, gains of norms moved
    towards 1."""
    redrawn_layers: NonNegativeFloat = 0.0
    """Weight of re-initialising the top blocks."""
    pruned: NonNegativeFloat = 0.0
    """Weight of magnitude pruning in each matrix."""
    interpolated: NonNegativeFloat = 0.0
    """Weight of interpolating towards the public encoder."""
    noise: NonNegativeFloat = 0.0
    """Weight of adding Gaussian noise."""
    benign_first: NonNegativeFloat = 0.0
    """Weight of training on the desired task first: Adam on the whole model, from a fresh head that is then dropped."""
    rescaled_exponents: Annotated[tuple[Exponent, ...], Field(min_length=1)] = (0.75, 1.0)
    """Exponents of the rescaling, sampled uniformly; 1 makes all sizes equal."""
    redrawn_counts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    """Numbers of top blocks that are re-initialised, sampled uniformly; the embeddings never are."""
    pruned_shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.1, 0.3, 0.5)
    """Shares of each matrix that are set to zero, sampled uniformly."""
    interpolated_shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.1, 0.25, 0.5)
    """Shares of the way to the public encoder, sampled uniformly."""
    noise_scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.03, 0.1, 0.3)
    """Standard deviations of the noise relative to each parameter's root mean square, sampled uniformly."""
    benign_first_steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 50)
    """Numbers of steps on the desired task, sampled uniformly; batches have the adversary's size."""
    benign_first_learning_rate: LogRange = LogRange(low=1e-4, high=1e-3)
    """Range of the learning rate of these steps; sampled log-uniformly."""

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.options():
            raise ValueError("all weights are 0, so no adversary could start; set released above 0")
        return self

    def options(self) -> tuple[StartOption, ...]:
        """Kinds with a positive weight, in a fixed order."""
        amounts: dict[StartKind, tuple[float, ...]] = {
            "released": (0.0,),
            "rescaled": self.rescaled_exponents,
            "redrawn_layers": tuple(map(float, self.redrawn_counts)),
            "pruned": self.pruned_shares,
            "interpolated": self.interpolated_shares,
            "noise": self.noise_scales,
            "benign_first": tuple(map(float, self.benign_first_steps)),
        }
        found = (StartOption(kind, getattr(self, kind), values) for kind, values in amounts.items())
        return tuple(option for option in found if option.weight)

    @property
    def edits(self) -> bool:
        """Whether any adversary starts from edited weights."""
        return any(option.kind != "released" for option in self.options())
