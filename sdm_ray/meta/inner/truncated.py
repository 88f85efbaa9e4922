"""The meta-gradient through the last T updates alone (Shaban et al., arXiv 1810.10667).

Earlier updates count as constant displacements: the gradient passes them unchanged.

- Memory: as `adjoint`, with vectors of T steps instead of K.
- Time: K gradients forward; backward T gradients again and T Hessian-vector products for each cotangent.

Shortcomings: biased, as the curvature of the earlier steps is left out. It is exact where T is at least K, and equals
`first_order` where T is 0. A term of inner gradients still costs a product at every step.
"""

from __future__ import annotations

from sdm_ray.meta.inner.prepared import LoopGradients, PreparedEpisode
from sdm_ray.meta.inner.reverse import differentiate_backward


def truncated(episode: PreparedEpisode) -> LoopGradients:
    """Gradients through the episode's last `truncation_steps` updates."""
    return differentiate_backward(episode, num_differentiated=min(episode.episode.truncation_steps, episode.num_steps))
