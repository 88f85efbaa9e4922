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

    According to the paper it varies less during fine-tuning than the loss does: confident errors do not raise it.
    """
    logs = class_scores(trajectory, "harmful_adapted_entropy").log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


@blocking_term("harmful_adapted_clamped", reads="harmful_adapted", maximised=True)
def harmful_adapted_clamped(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the adapted harmful cross-entropy, each example's clamped at log C (MLAC-AR).

    An example whose loss is above log C, that of uniform guessing, has zero gradient.
    """
    scores = class_scores(trajectory, "harmful_adapted_clamped")
    return example_losses(scores, trajectory.labels).clamp_max(math.log(scores.shape[-1])).mean()


@blocking_term("retain_representation", reads="hidden_states", maximised=False)
def retain_representation(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean over layers of the hidden states' squared distance to the original encoder's, on the desired batch."""
    return squared_distances(hidden, reference, mask).mean()
