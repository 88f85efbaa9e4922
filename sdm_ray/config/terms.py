"""Settings of blocking terms that have any besides their weight."""

from __future__ import annotations

from sdm_ray.config.base import NonNegativeInt, PositiveFloat, Settings


class TermSettings(Settings):
    """Settings of single blocking terms; each is named by its term in `train.blocking`."""

    representation_noise_layers: tuple[NonNegativeInt, ...] = ()
    """Hidden states that `representation_noise` turns into noise (0 is the embeddings); empty for all."""
    weight_distance_bound: PositiveFloat | None = None
    """Root mean square distance from the original weights from which on `weight_distance` is constant; None for no
    bound."""
    harmful_midpoint_bound: PositiveFloat | None = None
    """Loss in nats from which on `harmful_midpoint` is constant; None for no bound."""
    harmful_reduction_step: PositiveFloat = 0.1
    """Length of the simulated step of `harmful_reduction`, along the gradient of the harmful loss by the trunk."""
    collapse_step: PositiveFloat = 0.1
    """Learning rate of the simulated step of `collapse`."""
    collapse_class: NonNegativeInt = 0
    """Desired class that `collapse` makes the model predict after that step."""
