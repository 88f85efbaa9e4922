"""Terms that keep the un-adapted model a general encoder: masked-LM loss and distance of its hidden states."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.objectives.registry import blocking_term


@blocking_term("retain_mlm", reads="masked_lm", maximised=False)
def retain_mlm(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean masked-LM cross-entropy (Devlin et al., arXiv 1810.04805) of N predicted tokens; 0 if N is 0.

    Args:
        logits: (N, V).
        labels: (N,) token ids.
    """
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


@blocking_term("retain_distill", reads="hidden_states", maximised=False)
def retain_distill(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of the last hidden states to the original encoder's (cf. Sanh et al., arXiv 1910.01108).

    Arguments and normalisation as in `squared_distances`.
    """
    return squared_distances(hidden[-1:], reference[-1:], mask).mean()


def squared_distances(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of hidden states for each layer, averaged over the D elements and all tokens but padding.

    Args:
        hidden: (H, B, L, D).
        reference: (H, B, L, D).
        mask: (B, L), 1 on tokens and 0 on padding.

    Returns:
        (H,).
    """
    keep = mask.to(hidden.dtype)
    distances = (hidden - reference).square().mean(-1)
    return (distances * keep).sum((1, 2)) / keep.sum()
