"""Suppression losses of SOPHON, non-fine-tunable learning (Deng et al., arXiv 2404.12699): bounded below, so a
descent of them converges where an ascent of the cross-entropy runs off.

Both grow no faster than the largest margin between two scores, so neither overflows where softmax saturates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.objectives.losses import class_scores
from sdm_ray.meta.objectives.registry import Trajectory, blocking_term


@blocking_term("harmful_adapted_inverse", reads="harmful_adapted", maximised=False)
def harmful_adapted_inverse(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the inverse cross-entropy -log(1 - p(y)) of the adapted harmful prediction.

    Computed as the softplus of the right score's lead over all others together, whose derivative never exceeds 1. (The
    released code takes the cross-entropy of the negated scores, which for two classes is the same.)
    """
    scores = class_scores(trajectory, "harmful_adapted_inverse")
    classes = torch.arange(scores.shape[-1], device=scores.device)
    right = trajectory.labels[:, None] == classes
    own = scores.masked_fill(~right, 0).sum(-1)
    others = scores.masked_fill(right, -torch.inf).logsumexp(-1)
    return F.softplus(own - others).mean()


@blocking_term("harmful_adapted_uniform", reads="harmful_adapted", maximised=False)
def harmful_adapted_uniform(trajectory: Trajectory) -> Tensor:
    """Mean over evaluated steps of the divergence KL(uniform || p) of the adapted harmful prediction, in nats."""
    scores = class_scores(trajectory, "harmful_adapted_uniform")
    return -scores.log_softmax(-1).mean() - math.log(scores.shape[-1])
