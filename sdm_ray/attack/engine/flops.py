"""FLOPs of a fine-tune, by formula.

A weight of a matrix takes 2 FLOPs a token forwards, 2 for the gradient of its input and 2 for its own (Kaplan et al.,
arXiv 2001.08361). Embedding look-ups, attention scores, norms and optimiser arithmetic are left out, and so is scoring.
"""

from __future__ import annotations

from sdm_ray.attack.families.base import Attacker
from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike


class Counter:
    """FLOPs of fine-tunes of one model.

    Args:
        params: its weights.
        embedding: name of the token embedding among them.
        trunk: tells at which depth a parameter lies.
        tokens: mean tokens of an example.
    """

    def __init__(self, params: Params, embedding: str | None, trunk: TrunkLike, tokens: float) -> None:
        self._sizes = [
            (trunk.depth_of(name), value.numel())
            for name, value in params.items()
            if value.dim() > 1 and name != embedding
        ]
        self._tokens = tokens

    def of(self, attacker: Attacker) -> float:
        """FLOPs of a fine-tune, the training before it (an edit) left out."""
        weights = sum(size for _, size in self._sizes)
        seen = attacker.num_steps * attacker.batch_size * self._tokens
        if attacker.frozen:  # the trunk passes every example that is owned once
            return 2.0 * weights * attacker.num_examples * self._tokens
        if attacker.trains == "lora":
            return 4.0 * weights * seen
        moved = sum(size for depth, size in self._sizes if depth >= attacker.depth)
        return (2.0 * weights + 4.0 * moved) * seen
