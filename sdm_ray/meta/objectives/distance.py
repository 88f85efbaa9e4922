"""Distance from the original weights, and the harmful loss halfway to them (Siddiqui et al., arXiv 2505.22310).

The paper finds that unlearned models resist relearning if they lie far from the original weights, and if no path of low
loss joins the two. Its methods for that are the two terms below, each beside the loss on what is retained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.objectives.losses import example_losses
from sdm_ray.meta.objectives.registry import Trajectory, blocking_term


@blocking_term("weight_distance", reads="weights", maximised=True)
def weight_distance(trunk: Tensor, original: Tensor, bound: float | None = None) -> Tensor:
    """Root mean square of what weights differ in from the original ones; its derivative at zero is zero.

    Args:
        trunk: (P,) weights.
        original: (P,) weights of the original encoder.
        bound: distance from which on the term is constant, which makes it a constraint; None for a term without bound,
            as published.
    """
    distance: Tensor = torch.linalg.vector_norm(trunk - original) / len(trunk) ** 0.5
    return distance if bound is None else distance.clamp_max(bound)


@blocking_term("harmful_midpoint", reads="midpoint", maximised=True)
def harmful_midpoint(trajectory: Trajectory, bound: float | None = None) -> Tensor:
    """Harmful loss of the weights halfway between the original and the current ones.

    Args:
        trajectory: outputs of the model with these weights, one step.
        bound: loss from which on the term is constant; None for none.
    """
    loss = example_losses(trajectory.logits, trajectory.labels).mean()
    return loss if bound is None else loss.clamp_max(bound)
