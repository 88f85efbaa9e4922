"""The regulariser of Booster, which attenuates harmful perturbations (Huang et al., arXiv 2409.01586)."""

from __future__ import annotations

from torch import Tensor

from sdm_ray.meta.objectives.registry import blocking_term


@blocking_term("harmful_reduction", reads="harmful_step", maximised=False)
def harmful_reduction(before: Tensor, after: Tensor) -> Tensor:
    """What one simulated step reduces the harmful loss by: h(theta) - h(theta - alpha * g / |g|), g its gradient.

    Args:
        before: 0-d harmful loss of the un-adapted model.
        after: 0-d harmful loss after the step, on the same batch and under the same head.
    """
    return before - after
