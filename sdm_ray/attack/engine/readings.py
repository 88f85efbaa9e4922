"""Input of heads and probes: features of the texts under frozen weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from sdm_ray.attack.engine.scoring import FeatureStore, ScoringSet, hidden_features, trunk_features
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.models.interface import TrunkLike

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


class Readings:
    """Features under fixed weights, computed on demand and cached.

    Args:
        trunk: the architecture.
        params: its weights, edited or released.
        data: the texts.
        pool: (M,) examples from which attackers' subsets are drawn, on the host.
        task: task of the labels in batches; features do not depend on it.
        scored: examples on which attackers are scored, by split.
    """

    def __init__(
        self,
        trunk: TrunkLike,
        params: Params,
        data: AttackDataset,
        pool: Tensor,
        task: Task,
        scored: Mapping[Split, ScoringSet],
    ) -> None:
        self._trunk, self._params, self._scored = trunk, params, scored
        self._pooled: dict[Split, Tensor] = {}
        self._hidden: dict[Split, Tensor] = {}
        self.owned = FeatureStore(trunk, params, data, pool, task)

    def pooled(self, split: Split) -> Tensor:
        """(N, D) pooled features of a split."""
        if split not in self._pooled:
            self._pooled[split] = trunk_features(self._trunk, self._params, self._scored[split])
        return self._pooled[split]

    def read(self, split: Split, layer: int) -> Tensor:
        """(N, ·) features of a split for a probe: pooled features (layer -1), or token means of a hidden state."""
        if layer < 0:
            return self.pooled(split)
        if split not in self._hidden:
            self._hidden[split] = hidden_features(self._trunk, self._params, self._scored[split])
        return self._hidden[split][layer]
