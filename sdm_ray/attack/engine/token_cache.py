"""A cache of forward passes over texts under fixed weights, for readers of the same texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator

from torch import Tensor

from sdm_ray.attack.engine.scoring import ScoringSet
from sdm_ray.attack.engine.token_states import Pass, Tokens, run_trunk, tokens_of
from sdm_ray.attack.families.token_probe import POOLED
from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike

KEPT_BYTES = 1024**3
"""Cache size for one model; the least recently used texts are evicted."""


class Passes:
    """Forward passes of one model, by texts.

    Args:
        trunk: the architecture.
        params: its weights.
        most: cache size in bytes.
    """

    def __init__(self, trunk: TrunkLike, params: Params, most: int = KEPT_BYTES) -> None:
        self._trunk, self._params, self._most = trunk, params, most
        self._kept: OrderedDict[bytes, list[Pass]] = OrderedDict()

    def tokens(self, examples: ScoringSet, layers: Collection[int], known: Tensor | None) -> Iterator[Tokens]:
        """Yield the token states of each batch.

        Args:
            examples: the texts.
            layers: layers whose states are needed.
            known: (N, 2) positions of names in the order of `examples`; None if unknown.
        """
        key = examples.indices.numpy().tobytes()
        kept = self._kept.pop(key, [])
        if kept and not _has(kept[0], layers):
            kept = []
        found: list[Pass] | None = []
        start = 0
        for place, batch in enumerate(examples.batches):
            stop = start + len(batch.labels)
            done = kept[place] if kept else run_trunk(self._trunk, self._params, batch, layers)
            if found is not None:
                found.append(done)
                if _bytes(found) > self._most:
                    found = None  # too large for the cache: each pass is freed after use
            names = None if known is None else known[start:stop]
            yield tokens_of(done, self._trunk, self._params, batch, names, layers)
            start = stop
        if found is not None:
            self._keep(key, found)

    def _keep(self, key: bytes, found: list[Pass]) -> None:
        self._kept[key] = found
        while sum(map(_bytes, self._kept.values())) > self._most:
            self._kept.popitem(last=False)


def _has(done: Pass, layers: Collection[int]) -> bool:
    """Whether a pass has the outputs that these layers need."""
    if any(layer >= 0 for layer in layers):
        return done.hidden is not None
    return POOLED not in layers or done.features is not None


def _bytes(found: list[Pass]) -> int:
    return sum(value.nbytes for done in found for value in done if value is not None)
