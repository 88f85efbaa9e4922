"""Blocking terms: pure functions from a model's outputs to a scalar, one file per family, registered by name."""

from sdm_ray.meta.objectives.booster import harmful_reduction
from sdm_ray.meta.objectives.conditioning import desired_well_conditioning, harmful_ill_conditioning
from sdm_ray.meta.objectives.ctrap import collapse
from sdm_ray.meta.objectives.distance import harmful_midpoint, weight_distance
from sdm_ray.meta.objectives.information import mutual_information, predictor_loss
from sdm_ray.meta.objectives.losses import accuracies, example_losses, step_losses, task_loss
from sdm_ray.meta.objectives.mlac import (
    adapted_grad_norm,
    desired_adapted,
    desired_adapted_harmful,
    harmful_adapted,
    harmful_adapted_calibrated,
    harmful_base,
)
from sdm_ray.meta.objectives.registry import (
    TERMS,
    TRAJECTORY_READS,
    Reads,
    Term,
    Trajectory,
    blocking_term,
    load_terms,
    weighted_sum,
)
from sdm_ray.meta.objectives.repnoise import representation_noise
from sdm_ray.meta.objectives.retention import retain_distill, retain_mlm
from sdm_ray.meta.objectives.seam import gradient_coupling
from sdm_ray.meta.objectives.sophon import harmful_adapted_inverse, harmful_adapted_uniform
from sdm_ray.meta.objectives.tar import harmful_adapted_clamped, harmful_adapted_entropy, retain_representation

__all__ = [
    "TERMS",
    "TRAJECTORY_READS",
    "Reads",
    "Term",
    "Trajectory",
    "accuracies",
    "adapted_grad_norm",
    "blocking_term",
    "collapse",
    "desired_adapted",
    "desired_adapted_harmful",
    "desired_well_conditioning",
    "example_losses",
    "gradient_coupling",
    "harmful_adapted",
    "harmful_adapted_calibrated",
    "harmful_adapted_clamped",
    "harmful_adapted_entropy",
    "harmful_adapted_inverse",
    "harmful_adapted_uniform",
    "harmful_base",
    "harmful_ill_conditioning",
    "harmful_midpoint",
    "harmful_reduction",
    "load_terms",
    "mutual_information",
    "predictor_loss",
    "representation_noise",
    "retain_distill",
    "retain_mlm",
    "retain_representation",
    "step_losses",
    "task_loss",
    "weight_distance",
    "weighted_sum",
]
