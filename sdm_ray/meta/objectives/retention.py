"""What keeps the un-adapted model a general encoder: its masked-LM loss and its hidden states on general text."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.objectives.registry import blocking_term


@blocking_term("retain_mlm", reads="masked_lm", maximised=False)
def retain_mlm(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean masked-LM cross-entropy (Devlin et al., arXiv 1810.04805) of N predicted tokens; 0 where there is none.

    Args:
        logits: (N, V).
        labels: (N,) tokens.
    """
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


@blocking_term("retain_distill", reads="hidden_states", maximised=False)
def retain_distill(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of the last hidden states to the original encoder's (cf. Sanh et al., arXiv 1910.01108).

    See `squared_distances` for arguments and unit.
    """
    return squared_distances(hidden[-1:], reference[-1:], mask).mean()


def squared_distances(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of hidden states by layer, as a mean over tokens and over their D elements, padding apart.

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
