"""Terms of TAR, tampering attack resistance, and of a baseline in its paper (Tamirisa et al., arXiv 2408.00761)."""

from __future__ import annotations

import math

from torch import Tensor

from sdm_ray.meta.objectives.losses import class_scores, example_losses
from sdm_ray.meta.objectives.registry import Trajectory, blocking_term
from sdm_ray.meta.objectives.retention import squared_distances


@blocking_term("harmful_adapted_entropy", reads="harmful_adapted", maximised=True)
def harmful_adapted_entropy(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the entropy of the adapted harmful prediction, in nats; at most log C.

    The paper finds it flatter along a fine-tuning than the loss itself: a confident error counts for nothing.
    """
    logs = class_scores(trajectory, "harmful_adapted_entropy").log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


@blocking_term("harmful_adapted_clamped", reads="harmful_adapted", maximised=True)
def harmful_adapted_clamped(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the adapted harmful cross-entropy, each example's clamped at log C (MLAC-AR).

    An example that is guessed no better than chance pulls no more.
    """
    scores = class_scores(trajectory, "harmful_adapted_clamped")
    return example_losses(scores, trajectory.labels).clamp_max(math.log(scores.shape[-1])).mean()


@blocking_term("retain_representation", reads="hidden_states", maximised=False)
def retain_representation(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean over all hidden states of their squared distance to the original encoder's; read on the desired batch."""
    return squared_distances(hidden, reference, mask).mean()
