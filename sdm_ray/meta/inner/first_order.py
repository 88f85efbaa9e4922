"""The first-order meta-gradient: gradients at the adapted models, applied to the trunk (as TAR, arXiv 2408.00761).

All updates count as constant displacements, so no Hessian-vector product is taken.

- Memory: one step's graph, and the variables of the evaluated steps.
- Time: K gradients, and a gradient for each evaluated step and cotangent.

Shortcomings: biased, as it ignores that the trunk changes the adversaries' steps. A term of inner gradients, which has
no gradient without second derivatives, still costs a product at every step.
"""

from __future__ import annotations

from sdm_ray.meta.inner.prepared import LoopGradients, PreparedEpisode
from sdm_ray.meta.inner.reverse import differentiate_backward


def first_order(episode: PreparedEpisode) -> LoopGradients:
    """Gradients at the adapted models, no update being differentiated."""
    return differentiate_backward(episode, num_differentiated=0)
