"""What a learned predictor reads from the adapted features: a variational bound on mutual information.

I(Y; Z) >= H(Y) - CE(predictor(Z), Y) for every predictor (Barber and Agakov, NeurIPS 2003), and the better the
predictor, the tighter. Trunk and predictors play against each other, as in adversarial censoring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.objectives.losses import class_scores, example_losses, full_precision
from sdm_ray.meta.objectives.registry import Trajectory, blocking_term


@blocking_term("mutual_information", reads="predicted", maximised=False)
def mutual_information(trajectory: Trajectory, predictors: Tensor) -> Tensor:
    """Mean over evaluated steps of the bound on what the features tell about the harmful label, in nats.

    Negative where predictors do worse than the label frequencies of the batch.

    Args:
        trajectory: of S evaluated steps.
        predictors: (S, C, D) the linear predictor of each step.
    """
    classes = torch.arange(predictors.shape[1], device=predictors.device)
    shares = (trajectory.labels[:, None] == classes).to(predictors.dtype).mean(0)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy - predictor_loss(trajectory, predictors)


def predictor_loss(trajectory: Trajectory, predictors: Tensor) -> Tensor:
    """Mean over evaluated steps of the predictors' cross-entropy, which they descend.

    Args:
        trajectory: of S evaluated steps.
        predictors: (S, C, D) the linear predictor of each step.
    """
    class_scores(trajectory, "mutual_information")
    return example_losses(full_precision(trajectory.features) @ predictors.mT, trajectory.labels).mean()
