"""Accuracy and loss of a released model on its desired task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdm_ray.attack.engine.scoring import ScoringSet, trunk_features
from sdm_ray.attack.scores import Calibration, evaluate
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.interface import labelled
from sdm_ray.models.heads import logits
from sdm_ray.models.interface import TrunkLike

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


@torch.no_grad()
def desired_scores(
    trunk: TrunkLike, params: Params, head: Tensor, data: AttackDataset, split: Split
) -> tuple[float, float]:
    """Plain accuracy and mean cross-entropy (nats) of the desired task.

    Args:
        trunk: the architecture.
        params: released weights.
        head: (C, D) desired head.
        data: texts and labels.
        split: which examples.
    """
    examples = ScoringSet.of(data, labelled(data, data.indices(split), Task.DESIRED), Task.DESIRED)
    scores = logits(trunk_features(trunk, params, examples), head).cpu()
    result = evaluate(scores, examples.labels, Calibration(tuple(range(scores.shape[1])), scale=1.0))
    return result.plain_accuracy, result.loss
