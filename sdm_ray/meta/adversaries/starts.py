"""Adversaries that start from edited weights, like attackers who edit weights before they fine-tune.

Every edit is an elementwise affine map of the weights: the start is `factor * theta + shift`. Factor and shift
(masks, scales, means, random draws, steps on the desired task) are recomputed for each adversary and treated as
constants. Meta-gradients reach
`theta` through the factor, so weights that were pruned or re-initialised get none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.config.starts import StartSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.meta.adversaries.benign import BenignFirst
from sdm_ray.meta.adversaries.distribution import pick, uniform, whole_number
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.models.edits import Affine, Redraw, interpolation, noising, pruning, redrawing, rescaling


class StartMap(NamedTuple):
    """The map from the current weights to a start."""

    factor: Tensor
    """(P,)."""
    shift: Tensor
    """(P,)."""


class Starts:
    """Samples the weights that adversaries start from.

    Args:
        settings: the distribution.
        model: gives the layout of the parameters.
        generator: CPU generator of all draws; unused if every adversary starts from the current weights.
        public: (P,) the public encoder, for `interpolated`; None if it is not needed.
        redraw: function that initialises the architecture's weights from a seed; None if there is none.
        benign: trains on the desired task, for `benign_first`; None if it is not needed.

    Raises:
        UsageError: for `redrawn_layers` if the trunk has one block only, or cannot be re-initialised.
    """

    def __init__(
        self,
        settings: StartSettings,
        *,
        model: FlatModel,
        generator: torch.Generator,
        public: Tensor | None = None,
        redraw: Redraw | None = None,
        benign: BenignFirst | None = None,
    ) -> None:
        if settings.redrawn_layers and (model.trunk.num_depths < 2 or redraw is None):
            needs = "more than one block" if model.trunk.num_depths < 2 else "fresh weights, which it cannot draw"
            raise UsageError(
                f"train.adversary.starts.redrawn_layers is {settings.redrawn_layers:g}, but needs {needs} in this "
                "encoder; set it to 0"
            )
        self._options = settings.options() if settings.edits else ()
        self._model, self._generator, self._public, self._redraw = model, generator, public, redraw
        self._benign = benign

    def draw(self, adversary: Adversary) -> Adversary:
        """The adversary with a sampled start. Every draw takes the same number of random numbers."""
        if not self._options:
            return adversary
        place, seed = uniform(self._generator), whole_number(0, 2**31 - 1, self._generator)
        place *= sum(option.weight for option in self._options)
        chosen = self._options[-1]
        for option in self._options:
            if place < option.weight:
                chosen = option
                break
            place -= option.weight
        amount = pick(chosen.amounts, self._generator)
        return replace(adversary, start=chosen.kind, start_amount=amount, start_seed=seed)

    def map(self, adversary: Adversary, trunk: Tensor) -> StartMap | None:
        """Map from the current weights (P,) to an adversary's start; None if it starts from the current weights."""
        if adversary.start == "released":
            return None
        trunk = trunk.detach()
        layout = self._model.layout
        if adversary.start == "benign_first":
            assert self._benign is not None
            return StartMap(torch.ones_like(trunk), self._benign.displacement(adversary, trunk))
        found = StartMap(torch.ones_like(trunk), torch.zeros_like(trunk))
        factors, shifts = layout.unflatten(found.factor), layout.unflatten(found.shift)
        for name, edit in self._edit(adversary, trunk).items():
            factors[name].copy_(edit.factor.expand_as(factors[name]))
            shifts[name].copy_(edit.shift.expand_as(shifts[name]))
        return found

    def take_texts(self) -> int:
        """Texts that starts trained on since the last call."""
        return 0 if self._benign is None else self._benign.take_texts()

    def _edit(self, adversary: Adversary, trunk: Tensor) -> dict[str, Affine]:
        """Edit of each parameter that is changed."""
        layout, amount = self._model.layout, adversary.start_amount
        params = layout.unflatten(trunk)
        if adversary.start == "rescaled":
            return rescaling(self._model.trunk, params, amount)
        if adversary.start == "pruned":
            return pruning(params, amount)
        if adversary.start == "interpolated":
            assert self._public is not None
            return interpolation(params, amount, layout.unflatten(self._public))
        if adversary.start == "redrawn_layers":
            assert self._redraw is not None
            return redrawing(self._model.trunk, params, amount, self._redraw(adversary.start_seed))
        assert adversary.start == "noise", adversary.start
        return noising(params, amount, adversary.start_seed)
