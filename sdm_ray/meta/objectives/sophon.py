"""Suppression losses of SOPHON, non-fine-tunable learning (Deng et al., arXiv 2404.12699).

They are bounded below, so minimising them converges, while maximising the cross-entropy diverges. Both grow at most
linearly with the largest margin between two logits, so neither overflows when the softmax saturates.
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

    Computed as softplus(z_y - logsumexp of the other logits), whose derivative is at most 1. The paper's released code
    takes the cross-entropy of the negated logits, which is the same for two classes.
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
