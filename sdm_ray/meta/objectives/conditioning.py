"""Immunisation by condition numbers (Zheng et al., arXiv 2505.23760), which set how fast a head learns by descent.

The condition number is that of the Hessian of a task's loss with respect to its head, for which the paper takes the
squared loss: the features' second moments. For classes each text here counts by the trace of its softmax's covariance,
1 - sum of p^2, which is the head's Hessian for two classes and the sum of its diagonal blocks for more. Only with these
weights do two tasks differ that have the same texts. Where texts are fewer than features, the condition number is that
within their span.

The paper's regularisers are taken of the Hessian S divided by its mean eigenvalue. No condition number changes,
and the trunk cannot scale its features instead. The paper's preconditioned step is not taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.objectives.registry import Trajectory, blocking_term

SQUARINGS = 24
"""Squarings of a matrix by which its largest eigenvalue is found, without waiting for the device."""
FLOOR = 1e-9
"""Least value of a denominator, relative to the mean squared eigenvalue."""


@blocking_term("harmful_ill_conditioning", reads="harmful_base", maximised=False)
def harmful_ill_conditioning(trajectory: Trajectory) -> Tensor:
    """1 / (|S|_F^2 / (2 k) - s_min(S)^2 / 2) of the harmful head's Hessian (k, k): it falls as the condition number
    grows. Only outputs at step 0 are used; mean over adversaries."""
    hessian = head_hessian(trajectory)
    spread = hessian.square().sum((-2, -1)) / hessian.shape[-1]
    gap = spread - _smallest(hessian).square()
    return (2 / torch.maximum(gap, FLOOR * spread.detach()).clamp_min(_tiny(gap))).mean()


@blocking_term("desired_well_conditioning", reads="desired_base", maximised=False)
def desired_well_conditioning(trajectory: Trajectory) -> Tensor:
    """s_max(S)^2 / 2 - |S|_F^2 / (2 k) of the desired head's Hessian (k, k): at least 0, and 0 where the condition
    number is 1."""
    hessian = head_hessian(trajectory)
    spread = hessian.square().sum((-2, -1)) / hessian.shape[-1]
    return (_largest(hessian).square() - spread).mean() / 2


def head_hessian(trajectory: Trajectory) -> Tensor:
    """(A, k, k) float64 matrices with the eigenvalues of the Hessian of a loss by its head at step 0, within the span
    of the texts, divided by their mean; k is the lesser of texts and features."""
    chosen = [index for index, step in enumerate(trajectory.steps) if step == 0]
    features = torch.stack([trajectory.features[index] for index in chosen]).double()
    if not trajectory.labels.is_floating_point():
        logits = torch.stack([trajectory.logits[index] for index in chosen]).double()
        features = features * (1 - logits.softmax(-1).square().sum(-1)).sqrt()[..., None]
    wide = features.shape[-2] < features.shape[-1]
    hessian = features @ features.mT if wide else features.mT @ features
    trace = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return hessian * hessian.shape[-1] / trace.clamp_min(_tiny(trace))


def _largest(matrix: Tensor) -> Tensor:
    """(A,) largest eigenvalues of positive semidefinite matrices (A, k, k); differentiable once."""
    return (_top(matrix.detach()) * matrix).sum((-2, -1))


def _smallest(matrix: Tensor) -> Tensor:
    """(A,) smallest eigenvalues, in the same way."""
    fixed = matrix.detach()
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    shift = _largest(fixed)[:, None, None] * (1 + FLOOR)
    return (_top(shift * unit - fixed) * matrix).sum((-2, -1))


def _top(matrix: Tensor) -> Tensor:
    """Projections (A, k, k) onto the eigenvectors of largest eigenvalue, divided by their number; the value's gradient
    by the envelope theorem."""
    for _ in range(SQUARINGS + 1):
        trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        matrix = matrix / trace.clamp_min(_tiny(trace))
        matrix = matrix @ matrix
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return matrix / trace.clamp_min(_tiny(trace))


def _tiny(values: Tensor) -> float:
    return float(torch.finfo(values.dtype).tiny)
