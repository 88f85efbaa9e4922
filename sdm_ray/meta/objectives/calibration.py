"""Calibration: the loss that remains when an adversary may apply a linear map to the logits.

A defence that swaps labels has a high cross-entropy, but a linear map of the logits makes it low again. The blocking
loss of MLAC (Henderson et al., arXiv 2211.14946) is therefore the loss at the best map, `min_W CE(z W, y)` with every
entry of `W` in [-1, 1]. The problem is convex. By the envelope (Danskin) theorem its gradient with respect to `z` is
that of `CE(z W, y)` with the minimiser `W` held fixed. This holds for first derivatives only: do not differentiate the
value twice. The minimiser need not be unique, so tests compare values and gradients, never `W`.

The solver is a primal-dual interior-point method (Boyd and Vandenberghe, *Convex Optimization*, 11.7). It solves all S
problems at once, with a fixed number of iterations and no branch on a value, so the host never waits for the device.
Projected gradient methods converge too slowly when the logits are nearly collinear, as those of a trained two-class
head are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Schedule(NamedTuple):
    """Constants of the interior-point method."""

    num_iterations: int
    """Newton steps."""
    centring: float
    """Target factor by which each step reduces the complementarity gap."""


TWO_CLASSES = Schedule(16, 0.2)
MANY_CLASSES = Schedule(24, 0.3)
"""The value is within 1e-6 nats of a convex solver's for logits of magnitude up to 100, collinear, separable, flipped
or with outliers (see the tests); within 1e-4 for larger ones."""
TO_BOUNDARY = 0.99
"""Largest fraction of the distance to the boundary that a step may cover."""
FLOOR = 1e-9
"""Complementarity gap, relative to the first gradient, below which steps only re-centre (the limit of float64)."""


def calibrated_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each problem after its best box-constrained linear map of the logits.

    Args:
        logits: (S, B, C), S problems that share their labels.
        labels: (B,) class indices.

    Returns:
        (S,) values in nats; differentiable once.
    """
    calibrated = logits @ calibrate(logits, labels)
    return F.cross_entropy(calibrated.mT, labels.expand(logits.shape[:2]), reduction="none").mean(1)


@torch.no_grad()
def calibrate(logits: Tensor, labels: Tensor) -> Tensor:
    """Minimisers `W` (S, C, C) of `CE(z W, y)` with entries in [-1, 1], for logits (S, B, C) and labels (B,).

    Solved in float64. For two classes the unknown is the difference of the two columns, with entries in [-2, 2].
    """
    num_classes = logits.shape[-1]
    z = logits.detach().double()
    classes = torch.arange(num_classes, device=labels.device)
    onehot = (labels[:, None] == classes).to(z.dtype)
    if num_classes == 2:
        difference = _interior_point(z, onehot[:, :1], 2.0, TWO_CLASSES)
        weights = torch.cat([difference / 2, difference / -2], dim=-1)
    else:
        weights = _interior_point(z, onehot, 1.0, MANY_CLASSES)
    return weights.to(logits.dtype)


def _interior_point(z: Tensor, onehot: Tensor, bound: float, schedule: Schedule) -> Tensor:
    """Minimise over maps (S, C, M): M = C columns, or M = 1 column when the second of two classes is fixed at 0.

    `dual` and `slack` are (2, S, CM): first of the upper bounds, then of the lower bounds.
    """
    num_problems, _, num_classes = z.shape
    shape = (num_problems, num_classes, onehot.shape[-1])
    moments = z.mT @ onehot
    sign = torch.stack([z.new_ones(1, 1), -z.new_ones(1, 1)])
    weights = z.new_zeros(num_problems, num_classes * onehot.shape[-1])
    gradient, hessian = _derivatives(z, weights.view(shape), moments)
    scale = gradient.abs().amax(1, keepdim=True) + torch.finfo(z.dtype).tiny
    dual = 0.5 * scale - (sign * gradient).clamp_max(0)
    floor = FLOOR * bound * scale
    for _ in range(schedule.num_iterations):
        slack = bound - sign * weights
        target = torch.maximum(schedule.centring * (dual * slack).mean((0, 2)).unsqueeze(1), floor)
        ratio, aim = dual / slack, target / slack
        system = hessian + torch.diag_embed(ratio.sum(0))
        step = torch.linalg.solve_ex(system, aim[1] - aim[0] - gradient)[0]
        signed = sign * step
        dual_step = aim - dual + ratio * signed
        reach = torch.maximum(signed / slack, -dual_step / dual).amax((0, 2))
        length = (TO_BOUNDARY / reach.clamp_min(TO_BOUNDARY)).unsqueeze(1)
        weights, dual = weights + length * step, dual + length * dual_step
        gradient, hessian = _derivatives(z, weights.view(shape), moments)
    return weights.view(shape)


def _derivatives(z: Tensor, weights: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (S, CM) and Hessian (S, CM, CM) of the summed cross-entropy; `moments` (S, C, M) are label sums."""
    scores = z @ weights
    if scores.shape[-1] == 1:
        share = scores.sigmoid()
        return (z.mT @ share - moments).flatten(1), z.mT @ (z * (share * (1 - share)))
    size = weights[0].numel()
    share = scores.softmax(-1)
    mixed = (z[..., :, None] * share[..., None, :]).flatten(2)
    blocks = torch.einsum("sbi,sbj,sba->sija", z, z, share)
    hessian = torch.diag_embed(blocks).transpose(2, 3).reshape(-1, size, size) - mixed.mT @ mixed
    return (z.mT @ share - moments).flatten(1), hessian
