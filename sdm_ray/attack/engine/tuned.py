"""Models that attackers fine-tune: the whole trunk, its upper layers, low-rank factors, or trunk and token head."""

from __future__ import annotations

from collections.abc import Sequence

from sdm_ray.attack.engine.scoring import forward_options
from sdm_ray.attack.engine.stack import Model
from sdm_ray.attack.engine.target import AttackTarget
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.edits import Editor
from sdm_ray.attack.families.lora import LoraTrunk
from sdm_ray.attack.families.token_heads import PREFIX, TokenHeadTrunk
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params
from sdm_ray.models.interface import as_module
from sdm_ray.models.trunk import Trunk


class TunedModels:
    """Fine-tunable versions of one released model.

    Args:
        target: the attacked model.
    """

    def __init__(self, target: AttackTarget) -> None:
        self._target, self._trunk, self._seed = target, target.trunk, target.settings.seed
        self._lora: dict[int, LoraTrunk] = {}

    def of(self, stack: Sequence[Attacker], editor: Editor) -> Model:
        """The model that the attackers of a stack fine-tune; all of them train the same parameters."""
        first, params = stack[0], editor.edited(stack[0])
        if first.pooling:
            return self._with_readers(stack, params)
        if first.trains == "lora":
            return self._with_factors(stack, params)
        mixed = len({editor.key(attacker) for attacker in stack}) > 1
        starts = tuple(editor.edited(attacker) for attacker in stack) if mixed else ()
        return self.full(params, first.depth, starts)

    def full(self, params: Params, depth: int = 0, starts: tuple[Params, ...] = ()) -> Model:
        """Full fine-tuning above a depth; all attackers start at `params`, or each at its own of `starts`."""
        moving = {name: value for name, value in params.items() if self._trunk.depth_of(name) >= depth}
        shared = {name: value for name, value in params.items() if name not in moving}
        embedding = self._target.embedding
        return Model(
            as_module(self._trunk),
            shared,
            moving,
            embedding=embedding if embedding in moving else None,
            fixed_ids=self._trunk.fixed_ids,
            options=forward_options(self._trunk),
            packs=self._trunk.has_packing,
            starts=starts,
        )

    def _with_factors(self, stack: Sequence[Attacker], params: Params) -> Model:
        """Low-rank factors of frozen weights."""
        rank = stack[0].rank
        if rank not in self._lora:
            assert isinstance(self._trunk, Trunk), type(self._trunk)
            self._lora[rank] = LoraTrunk(self._trunk, rank)
        adapted = self._lora[rank]
        generators = [seeded(self._seed, "factors", attacker) for attacker in stack]
        like = next(iter(params.values()))
        return Model(adapted.module, adapted.shared(params), {}, adapted.factors(generators, like))

    def _with_readers(self, stack: Sequence[Attacker], params: Params) -> Model:
        """Full fine-tuning with a head that reads tokens."""
        assert isinstance(self._trunk, Trunk), type(self._trunk)
        module = TokenHeadTrunk(self._trunk, stack[0].pooling, self._target.num_classes)
        generators = [seeded(self._seed, "reader", attacker) for attacker in stack]
        start = {PREFIX + name: value for name, value in params.items()}
        embedding = None if self._target.embedding is None else PREFIX + self._target.embedding
        own = module.readers(generators, next(iter(params.values())))
        return Model(module, {}, start, own, embedding=embedding, fixed_ids=self._trunk.fixed_ids)
