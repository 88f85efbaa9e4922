"""The exact meta-gradient, by differentiating the loop backward one step at a time (see `meta.inner.rollout`).

`adjoint` computes every step again on the way back:

- Memory: one step's graph, and vectors (variables and optimiser moments) of every step.
- Time: K gradients forward; backward K gradients again and a Hessian-vector product for each step and cotangent.

`adjoint_stored` keeps the graphs of all steps from the forward pass, so that no gradient is computed twice. Its memory
grows with K times a step's graph. The two agree to the bit, and with `unrolled` to rounding.

Shortcomings: every optimiser needs an adjoint in closed form (`meta.inner.optim`); second derivatives do not pass, so
meta-gradients cannot be differentiated again.
"""

from __future__ import annotations

from sdm_ray.meta.inner.prepared import LoopGradients, PreparedEpisode
from sdm_ray.meta.inner.reverse import differentiate_backward


def adjoint(episode: PreparedEpisode) -> LoopGradients:
    """Exact gradients; every step is computed again on the way back."""
    return differentiate_backward(episode, num_differentiated=episode.num_steps)


def adjoint_stored(episode: PreparedEpisode) -> LoopGradients:
    """Exact gradients; the graphs of all steps are kept."""
    return differentiate_backward(episode, num_differentiated=episode.num_steps, keep_graphs=True)
