"""Families that edit released weights and then fine-tune them.

A defence may work only in a neighbourhood of the released weights. Noise, re-initialised layers, pruning, interpolation
towards the public encoder and training on a harmless task leave that neighbourhood.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from sdm_ray.attack.families.base import OWN_EDITS, Attacker, Facts, Family, fine_tuning, fine_tuning_space
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.families.rescale import RESCALINGS
from sdm_ray.attack.space import Choice, Point, Space
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.seeds import derived_seed
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.models.corruption import corrupt
from sdm_ray.models.edits import magnitude_mask, normal_like, redrawn_names, root_mean_square
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.masked_lm import MaskedLmHead, word_embedding_name
from sdm_ray.models.trunk import Trunk

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


def _space(amounts: Callable[[Facts], tuple[float, ...]]) -> Callable[[AttackSettings, int, Facts], Space]:
    def space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
        return fine_tuning_space(settings, num_examples) | {"amount": Choice(amounts(facts))}

    return space


def _attacker(name: str) -> Callable[[Point, int], Attacker]:
    def attacker(point: Point, num_examples: int) -> Attacker:
        return fine_tuning(name, point, num_examples, edit=name, amount=float(point["amount"]))

    return attacker


def _family(
    name: str,
    words: str,
    amounts: Callable[[Facts], tuple[float, ...]],
    missing: Callable[[Facts], str] = lambda facts: "",
) -> Family:
    return Family(name, words, _space(amounts), _attacker(name), missing)


NOISE = _family(
    "noise",
    "Gaussian noise on every weight (amount: relative to each parameter's root mean square), then full fine-tuning",
    lambda facts: (0.03, 0.1, 0.3, 1.0),
)
REINIT = _family(
    "reinit",
    "the top blocks drawn anew (amount: how many), then full fine-tuning",
    lambda facts: tuple(float(count) for count in range(1, facts.num_depths)),
    lambda facts: (
        "" if facts.num_depths > 1 and facts.can_redraw else "fresh weights of a trunk of more than one block"
    ),
)
PRUNE = _family(
    "prune",
    "weights of least magnitude set to zero (amount: their share of each matrix), then full fine-tuning",
    lambda facts: (0.1, 0.3, 0.5, 0.7),
)
INTERPOLATE = _family(
    "interpolate",
    "a step towards the public base encoder (amount: share of the way), then full fine-tuning",
    lambda facts: (0.1, 0.25, 0.5, 0.75),
    lambda facts: "" if facts.has_public else "the public encoder that it was made from",
)
GRAFT = _family(
    "graft",
    "public blocks below the defended ones, the embeddings first (amount: how many, negative: the other way round), "
    "then full fine-tuning",
    lambda facts: tuple(sign * float(depth) for depth in range(1, facts.num_depths) for sign in (1, -1)),
    lambda facts: "" if facts.has_public and facts.num_depths > 1 else "a public encoder of more than one block",
)
BENIGN_FIRST = _family(
    "benign_first",
    "fine-tuning on the desired task (amount: steps of Adam), then on the harmful one",
    lambda facts: (50.0, 200.0, 600.0),
)
MASKED_LM = _family(
    "masked_lm",
    "continued masked-LM pretraining on the attacker's texts (amount: steps of Adam), then full fine-tuning",
    lambda facts: (50.0, 200.0, 600.0),
    lambda facts: "" if facts.has_masked_lm else "the public encoder's masked-LM head",
)


Edit = Callable[[Params, float, int], Params]
"""Edited weights, given weights, the amount and a seed."""

PREPARING_RATE, PREPARING_BATCH = 3e-4, 16
"""Learning rate of Adam, and batch size, of training that is part of an edit (`benign_first`, `masked_lm`)."""
MASKED_SHARE = 0.15
"""Fraction of the tokens that masked-LM pretraining predicts (Devlin et al., arXiv 1810.04805)."""
RANDOM = ("noise", "reinit")
"""Edits that differ for every seed; of the others, all attackers with the same amount share the result."""
KEPT_BYTES = 512 * 1024**2
"""Size of the cache of edited weights; it always holds at least one entry."""


class Editor:
    """Applies the edits of attackers to the released weights, one after the other, with a cache of recent results.

    Args:
        trunk: the architecture.
        params: released weights.
        data: the texts of attacker-train and their desired labels are used, not the harmful labels.
        knowledge: public knowledge about the model.
        base_seed: seed of all draws.
        train_desired: function (weights, number of steps) -> weights after training on the desired task.
    """

    def __init__(
        self,
        trunk: TrunkLike,
        params: Params,
        data: AttackDataset,
        knowledge: Knowledge,
        base_seed: int,
        train_desired: Callable[[Params, int], Params],
    ) -> None:
        self._trunk, self._params, self._data, self._knowledge = trunk, params, data, knowledge
        self._base_seed = base_seed
        self._edits: dict[str, Edit] = {
            "noise": self._noise,
            "reinit": self._reinit,
            "prune": self._prune,
            "interpolate": self._interpolate,
            "graft": self._graft,
            "benign_first": lambda params, amount, seed: train_desired(params, round(amount)),
            "masked_lm": self._masked_lm,
        }
        self._edits |= {name: partial(_rescaled, function, trunk) for name, function in RESCALINGS.items()}
        self._edits |= {name: partial(function, trunk) for name, function in OWN_EDITS.items()}
        size = sum(value.numel() * value.element_size() for value in params.values())
        self._num_kept = max(1, KEPT_BYTES // max(size, 1))
        self._kept: OrderedDict[tuple[object, ...], Params] = OrderedDict()

    @staticmethod
    def key(attacker: Attacker) -> tuple[object, ...]:
        """A key that is equal for attackers that start from the same weights."""
        names = attacker.edits
        value: object = attacker.amounts if attacker.edit and attacker.amounts else attacker.amount
        if not set(names) & set(RANDOM):
            return attacker.edit, value
        seeds = (attacker.phase, attacker.repeat, attacker.num_examples, attacker.seed_index, attacker.attempt)
        return attacker.edit, value, *seeds

    def mixed(self, attackers: Sequence[Attacker]) -> set[tuple[object, ...]]:
        """Keys of attackers that may be in one stack although they start from different weights.

        These are the keys of released and rescaled weights if all of them fit into the cache; else none.
        """
        cheap = {self.key(a) for a in attackers if a.trains == "full" and set(a.edits) <= RESCALINGS.keys()}
        return cheap if 1 < len(cheap) <= self._num_kept else set()

    def edited(self, attacker: Attacker) -> Params:
        """The initial weights of an attacker."""
        if not attacker.edit:
            return self._params
        key = self.key(attacker)
        if key not in self._kept:
            self._kept[key] = self._apply(attacker, key)
        self._kept.move_to_end(key)
        while len(self._kept) > self._num_kept:
            self._kept.popitem(last=False)
        return self._kept[key]

    @torch.no_grad()
    def _apply(self, attacker: Attacker, key: tuple[object, ...]) -> Params:
        params, names = self._params, attacker.edits
        amounts = attacker.amounts or (attacker.amount,) * len(names)
        for index, (name, amount) in enumerate(zip(names, amounts, strict=True)):
            place = (index,) if index else ()
            seed_key = key if len(names) == 1 else (name, amount, *key[2:], *place)
            params = self._edits[name](params, amount, derived_seed(self._base_seed, "edit", *seed_key))
        return params

    def _noise(self, params: Params, amount: float, seed: int) -> Params:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: value + amount * root_mean_square(value) * normal_like(value, generator)
            for name, value in params.items()
        }

    def _reinit(self, params: Params, amount: float, seed: int) -> Params:
        assert self._knowledge.redraw is not None
        fresh, names = self._knowledge.redraw(seed), redrawn_names(self._trunk, params, amount)
        return params | {name: fresh[name].to(params[name]) for name in names}

    def _prune(self, params: Params, amount: float, seed: int) -> Params:
        """Magnitude pruning, separately for every matrix (Han et al., arXiv 1506.02626)."""
        return {
            name: value if value.dim() < 2 else value * magnitude_mask(value, amount) for name, value in params.items()
        }

    def _interpolate(self, params: Params, amount: float, seed: int) -> Params:
        public = self._knowledge.public
        assert public is not None
        return {name: torch.lerp(value, public[name].to(value), amount) for name, value in params.items()}

    def _graft(self, params: Params, amount: float, seed: int) -> Params:
        public, below = self._knowledge.public, amount > 0
        assert public is not None
        return {
            name: public[name].to(value) if (self._trunk.depth_of(name) < abs(amount)) == below else value
            for name, value in params.items()
        }

    def _masked_lm(self, params: Params, amount: float, seed: int) -> Params:
        head, trunk = self._knowledge.masked_lm, self._trunk
        assert head is not None
        assert isinstance(trunk, Trunk), type(trunk)
        generator = torch.Generator().manual_seed(seed)
        texts = self._data.indices(Split.ATTACKER_TRAIN)
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        optimizer = torch.optim.Adam(list(leaves.values()), lr=PREPARING_RATE)
        embedding = word_embedding_name(trunk)
        for _ in range(round(amount)):
            chosen = texts[torch.randint(len(texts), (PREPARING_BATCH,), generator=generator)]
            loss = _masked_lm_loss(trunk, leaves, embedding, head, self._data, chosen, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: value.detach() for name, value in leaves.items()}


@torch.enable_grad()
def _masked_lm_loss(
    trunk: Trunk,
    params: Params,
    embedding: str,
    head: MaskedLmHead,
    data: AttackDataset,
    indices: Tensor,
    generator: torch.Generator,
) -> Tensor:
    batch = data.batch(indices, Task.DESIRED)
    ids = batch.input_ids.cpu()
    corrupted = corrupt(ids, head.special, mask_id=head.mask_id, share=MASKED_SHARE, generator=generator)
    inputs = (corrupted.input_ids.to(batch.input_ids.device), batch.attention_mask)
    _, states = functional_call(trunk, params, inputs, {"hidden_states": True})
    predicted = states[-1].flatten(0, 1)[corrupted.positions.to(states.device)]
    return F.cross_entropy(head(predicted, params[embedding]), corrupted.labels.to(states.device))


def _rescaled(
    function: Callable[[TrunkLike, Params, float], Params], trunk: TrunkLike, params: Params, amount: float, seed: int
) -> Params:
    return function(trunk, params, amount)
