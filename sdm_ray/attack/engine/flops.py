"""FLOPs of a fine-tune, by formula.

Each element of a weight matrix takes 2 FLOPs per token in the forward pass, 2 for the gradient of the input and 2 for
its own gradient (Kaplan et al., arXiv 2001.08361). Embedding look-ups, attention scores, norms, optimiser arithmetic
and scoring are not counted.
"""

from __future__ import annotations

from sdm_ray.attack.families.base import Attacker
from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike


class Counter:
    """FLOPs of fine-tunes of one model.

    Args:
        params: the model's weights.
        embedding: name of the token embedding; None if there is none.
        trunk: gives the depth of each parameter.
        tokens: mean number of tokens of an example.
    """

    def __init__(self, params: Params, embedding: str | None, trunk: TrunkLike, tokens: float) -> None:
        self._sizes = [
            (trunk.depth_of(name), value.numel())
            for name, value in params.items()
            if value.dim() > 1 and name != embedding
        ]
        self._tokens = tokens

    def of(self, attacker: Attacker) -> float:
        """FLOPs of a fine-tune, without the training in an edit."""
        weights = sum(size for _, size in self._sizes)
        seen = attacker.num_steps * attacker.batch_size * self._tokens
        if attacker.frozen:  # each of the attacker's examples passes through the trunk once
            return 2.0 * weights * attacker.num_examples * self._tokens
        if attacker.trains == "lora":
            return 4.0 * weights * seen
        moved = sum(size for depth, size in self._sizes if depth >= attacker.depth)
        return (2.0 * weights + 4.0 * moved) * seen
