"""Weights of the outer loss: one field per blocking term."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from sdm_ray.config.base import NonNegativeFloat, PositiveFloat, Settings


class BlockingSettings(Settings):
    """Weights of the terms of the outer loss; 0 turns a term off. `sdm_ray.meta.objectives` defines the terms."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {
            "representation_noise", "weight_distance", "harmful_midpoint", "harmful_reduction", "collapse",
            "harmful_ill_conditioning", "desired_well_conditioning",
        }
    )  # fmt: skip

    desired_base: NonNegativeFloat = 1.0
    """Desired loss of the un-adapted model; minimised."""
    harmful_base: NonNegativeFloat = 0.0
    """Harmful loss of the un-adapted model; maximised (adversarial censoring)."""
    harmful_adapted: NonNegativeFloat = 0.0
    """Mean over inner steps of the adapted harmful loss; maximised."""
    harmful_adapted_calibrated: NonNegativeFloat = 0.0
    """`harmful_adapted` after calibration, so that swapped labels do not raise it; maximised."""
    harmful_adapted_clamped: NonNegativeFloat = 0.0
    """`harmful_adapted` with each example's cross-entropy clamped at log C; maximised (MLAC-AR)."""
    harmful_adapted_entropy: NonNegativeFloat = 0.0
    """Mean over inner steps of the entropy of the adapted harmful prediction; maximised (TAR)."""
    harmful_adapted_inverse: NonNegativeFloat = 0.0
    """Mean over inner steps of the inverse cross-entropy of the adapted harmful prediction; minimised (SOPHON)."""
    harmful_adapted_uniform: NonNegativeFloat = 0.0
    """Mean over inner steps of the adapted harmful prediction's divergence from the uniform distribution; minimised
    (SOPHON)."""
    adapted_grad_norm: NonNegativeFloat = 0.0
    """Mean over inner steps of the norm of the harmful gradient; minimised."""
    desired_adapted: NonNegativeFloat = 0.0
    """Mean over inner steps of the desired loss of the model adapted to the desired task; minimised."""
    desired_adapted_harmful: NonNegativeFloat = 0.0
    """Mean over inner steps of the harmful loss of the model adapted to the desired task; maximised."""
    mutual_information: NonNegativeFloat = 0.0
    """Lower bound on the mutual information of adapted features and harmful label, from a learned linear predictor for
    each inner step; minimised."""
    gradient_coupling: NonNegativeFloat = 0.0
    """Cosine similarity of the harmful and the desired gradient at the un-adapted model; minimised (SEAM)."""
    representation_noise: NonNegativeFloat = 0.0
    """Distance of the hidden states of harmful texts from Gaussian noise; minimised (RepNoise)."""
    weight_distance: NonNegativeFloat = 0.0
    """Root mean square distance from the original encoder's weights; maximised (weight-space regularisation)."""
    harmful_midpoint: NonNegativeFloat = 0.0
    """Harmful loss of the weights halfway to the original encoder's; maximised (weight-space regularisation)."""
    harmful_reduction: NonNegativeFloat = 0.0
    """Reduction of the harmful loss by one simulated step of fixed length; minimised (Booster)."""
    collapse: NonNegativeFloat = 0.0
    """Cross-entropy of the desired prediction, after one simulated harmful step, towards one class for every text;
    minimised (CTRAP)."""
    harmful_ill_conditioning: NonNegativeFloat = 0.0
    """A measure that falls as the condition number of the harmful head's Hessian grows; minimised (immunisation)."""
    desired_well_conditioning: NonNegativeFloat = 0.0
    """A measure that falls with the condition number of the desired head's Hessian; minimised (immunisation)."""
    retain_mlm: NonNegativeFloat = 0.0
    """Masked-LM loss of the un-adapted model on general text; minimised."""
    retain_distill: NonNegativeFloat = 0.0
    """Mean squared difference between the last hidden states and the original encoder's, on general text; minimised."""
    retain_representation: NonNegativeFloat = 0.0
    """Mean squared difference between all layers' hidden states and the original encoder's, on the outer desired batch;
    minimised (TAR)."""
    custom: dict[str, PositiveFloat] = {}
    """Weights of terms that a module in `modules` registers, by name."""

    @model_validator(mode="after")
    def _custom_names_are_new(self) -> Self:
        taken = sorted(self.custom.keys() & type(self).model_fields.keys())
        if taken:
            raise ValueError(f"custom.{taken[0]} has a weight of its own: set blocking.{taken[0]} instead")
        return self

    def weights(self) -> dict[str, float]:
        """The positive weights by term, without `desired_base`."""
        fixed = {
            name: getattr(self, name) for name in type(self).model_fields if name not in ("desired_base", "custom")
        }
        return {name: weight for name, weight in (fixed | self.custom).items() if weight}
