"""A variational lower bound on the mutual information of adapted features and the harmful label.

I(Y; Z) >= H(Y) - CE(predictor(Z), Y) for every predictor (Barber and Agakov, NeurIPS 2003); a better predictor gives a
tighter bound. The trunk minimises the bound and the predictors maximise it, as in adversarial censoring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.objectives.losses import class_scores, example_losses, full_precision
from sdm_ray.meta.objectives.registry import Trajectory, blocking_term


@blocking_term("mutual_information", reads="predicted", maximised=False)
def mutual_information(trajectory: Trajectory, predictors: Tensor) -> Tensor:
    """Mean over evaluated steps of the lower bound on the mutual information, in nats.

    Negative if the predictors are worse than the batch's label frequencies.

    Args:
        trajectory: outputs at S evaluated steps.
        predictors: (S, C, D) the linear predictor of each step.
    """
    classes = torch.arange(predictors.shape[1], device=predictors.device)
    shares = (trajectory.labels[:, None] == classes).to(predictors.dtype).mean(0)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy - predictor_loss(trajectory, predictors)


def predictor_loss(trajectory: Trajectory, predictors: Tensor) -> Tensor:
    """Mean over evaluated steps of the predictors' cross-entropy, their training loss.

    Args:
        trajectory: outputs at S evaluated steps.
        predictors: (S, C, D) the linear predictor of each step.
    """
    class_scores(trajectory, "mutual_information")
    return example_losses(full_precision(trajectory.features) @ predictors.mT, trajectory.labels).mean()
