"""Functions that compute one vector per name, fitted to names of attacker-train with or without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdm_ray.attack.engine.interaction import InteractionScaling, NameStates, name_states
from sdm_ray.attack.engine.missing import maps_of_missing, read_states
from sdm_ray.attack.engine.missing_readers import MissingReadings
from sdm_ray.attack.engine.scoring import ScoringSet
from sdm_ray.attack.engine.token_cache import Passes
from sdm_ray.attack.engine.token_states import Names, NameScaling, OfNames, known_of
from sdm_ray.attack.families.base import Attacker
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.trunk import Trunk

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

NAMED_TEXTS = 3000
"""Most texts of attacker-train whose names are used."""


class NameReadings:
    """The functions for one model, fitted on demand and cached.

    Args:
        trunk: the architecture, a transformers encoder of texts.
        params: its weights.
        data: texts with known positions of names.
        task: task of the labels in batches; the functions do not depend on labels.
        seed: seed of the choice of texts.
        passes: cached forward passes of the model.
    """

    def __init__(
        self, trunk: TrunkLike, params: Params, data: AttackDataset, task: Task, seed: int, passes: Passes
    ) -> None:
        self._trunk, self._params, self._data, self._task, self._seed = trunk, params, data, task, seed
        self._passes = passes
        self._names: dict[int, Names] = {}
        """States of names by layer."""
        self._states: tuple[NameStates | None] | None = None
        """None before it is computed; the element may be None too (`name_states`)."""
        self._made: dict[tuple[str, int, int, str], OfNames] = {}
        self._maps: tuple[Tensor, ...] | None = None
        self._missing: MissingReadings | None = None

    def of(self, attacker: Attacker) -> OfNames:
        """The function for an attacker with one of the readings `families.token_probe.OF_NAMES`."""
        key = attacker.reading, attacker.layer, attacker.position, attacker.scaling
        if key not in self._made:
            names = self._names_at(attacker.layer)
            if attacker.reading == "bilinear":
                self._made[key] = NameScaling.of(attacker.scaling, names, attacker.position)
            else:
                layer = attacker.position or attacker.layer
                self._made[key] = InteractionScaling.of(names, self._name_states(), layer)
        return self._made[key]

    def maps_of_missing(self) -> tuple[Tensor, ...]:
        """What reading weights make of missing directions, see `engine.missing`; empty where none are missing."""
        if self._maps is None:
            layers, examples = read_states(self._trunk), self._texts()
            found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
            for tokens in self._passes.tokens(examples, layers, None) if layers else ():
                for layer in layers:
                    found[layer].append(tokens.states[layer][tokens.mask])
            self._maps = ()
            if layers:
                assert isinstance(self._trunk, Trunk)
                states = {layer: torch.cat(parts) for layer, parts in found.items()}
                self._maps = maps_of_missing(self._trunk, self._params, states)
        return self._maps

    def missing(self) -> MissingReadings:
        """What makes vectors of names by missing directions; only where there are some."""
        if self._missing is None:
            layers = (0, *read_states(self._trunk)[-1:], read_states(self._trunk)[-1] + 1)
            names = {layer: self._names_at(layer) for layer in layers}
            self._missing = MissingReadings(self.maps_of_missing(), names, self._name_states())
        return self._missing

    def _names_at(self, layer: int) -> Names:
        if layer not in self._names:
            examples = self._texts()
            known = known_of(self._data, examples.indices, next(iter(self._params.values())).device)
            parts = [Names.of(tokens, layer) for tokens in self._passes.tokens(examples, {layer}, known)]
            first, second, two = (torch.cat(values) for values in zip(*map(_fields, parts), strict=True))
            self._names[layer] = Names(first, second, two)
        return self._names[layer]

    def _name_states(self) -> NameStates | None:
        """Interactions of the two-word names in attacker-train's texts."""
        if self._states is None:
            examples = self._texts()
            known = known_of(self._data, examples.indices, torch.device("cpu"))
            assert known is not None
            self._states = (name_states(self._trunk, self._params, examples, known, self._seed),)
        return self._states[0]

    def _texts(self) -> ScoringSet:
        pool = self._data.indices(Split.ATTACKER_TRAIN)
        chosen = pool[torch.randperm(len(pool), generator=seeded(self._seed, "named texts"))[:NAMED_TEXTS]]
        return ScoringSet.of(self._data, chosen, self._task)


def _fields(names: Names) -> tuple[Tensor, Tensor, Tensor]:
    return names.first, names.second, names.second_known
