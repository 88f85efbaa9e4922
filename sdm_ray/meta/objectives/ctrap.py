"""The collapse trap CTRAP (Yi et al., arXiv 2505.16559)."""

from __future__ import annotations

from torch import Tensor

from sdm_ray.meta.objectives.losses import class_scores
from sdm_ray.meta.objectives.registry import Trajectory, blocking_term


@blocking_term("collapse", reads="desired_after_step", maximised=False)
def collapse(trajectory: Trajectory, label: int) -> Tensor:
    """Mean cross-entropy towards one fixed class, whatever the text, of desired predictions after a harmful step.

    The paper's model predicts tokens, and collapses onto one token on texts of general dialogue; ours predicts desired
    classes.

    Args:
        trajectory: outputs of the desired head on the desired batch, one step.
        label: the class.
    """
    return -class_scores(trajectory, "collapse").log_softmax(-1)[..., label].mean()
