"""Public knowledge that an attacker may have besides the released weights and the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sdm_ray.attack.families.base import Facts
from sdm_ray.attack.families.lora import linear_layers
from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.trunk import Trunk

if TYPE_CHECKING:
    from sdm_ray.models.masked_lm import MaskedLmHead


@dataclass(frozen=True)
class Knowledge:
    """Public knowledge about a released model. Families that need missing knowledge are not tried."""

    public: Params | None = None
    """Weights of the public encoder from which the model was trained."""
    own_head: Tensor | None = None
    """(C, D) the released head. It also serves as an initial head if it has as many classes as the harmful task."""
    masked_lm: MaskedLmHead | None = None
    """The public encoder's masked-LM head, on the device of the weights."""
    redraw: Callable[[int], Params] | None = None
    """Function from a seed to random weights of the architecture."""

    def facts(self, trunk: TrunkLike, num_classes: int) -> Facts:
        """The facts for families about a model with this trunk, for a harmful task of `num_classes` classes."""
        inner = trunk.hf_model if isinstance(trunk, Trunk) else None
        return Facts(
            num_depths=trunk.num_depths,
            num_hidden_states=0 if inner is None else int(inner.config.num_hidden_layers) + 1,
            has_linear_layers=inner is not None and bool(linear_layers(inner)),
            has_public=self.public is not None,
            has_own_head=self.own_head is not None and len(self.own_head) == num_classes,
            can_redraw=self.redraw is not None,
            has_masked_lm=self.masked_lm is not None and inner is not None,
            has_token_rows=inner is not None and trunk.embedding_name is not None,
        )
