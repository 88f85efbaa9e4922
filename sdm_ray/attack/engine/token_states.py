"""States of single tokens under given weights, and how they become one vector a text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.attack.families.token_probe import POOLED, ROWS
from sdm_ray.core.types import Batch, Params
from sdm_ray.data.interface import known_positions
from sdm_ray.models.interface import TrunkLike, as_module

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

FLOOR = 1e-12
"""Share of the largest variance below which an axis is what rounding left, and is not whitened."""


@dataclass(frozen=True)
class Tokens:
    """N texts, their tokens' states at some layers."""

    states: dict[int, Tensor]
    """(N, L, E) by layer; of the pooled features the same for every token."""
    mask: Tensor
    """(N, L) bool; True on tokens."""
    known: Tensor | None
    """(N, 2) places of a name's tokens; negative where none is known. None where the data do not tell."""
    ids: Tensor | None = None
    """(N, L) int64."""

    def at(self, layer: int, positions: Tensor) -> Tensor:
        """(N, E) states of one token of each text, the last one of a text that is shorter."""
        last = self.mask.sum(1) - 1
        return self.states[layer][torch.arange(len(last), device=last.device), torch.minimum(positions, last)]

    def name(self, layer: int, which: int) -> Tensor:
        """(N, E) states of the first or the second token of the name; the token after the special one, and the one
        after the first, stand in where there is none."""
        assert self.known is not None
        first = torch.where(self.known[:, 0] < 0, 1, self.known[:, 0])
        return self.at(layer, first if which == 0 else torch.where(self.known[:, 1] < 0, first + 1, self.known[:, 1]))


class Pass(NamedTuple):
    """What a forward pass over a batch of B texts gave; None where nobody asked for it."""

    features: Tensor | None
    """(B, D) pooled."""
    hidden: Tensor | None
    """(H, B, L, E) states of the embeddings and of each layer."""


@torch.no_grad()
def run_trunk(trunk: TrunkLike, params: Params, batch: Batch, layers: Collection[int]) -> Pass:
    """The forward pass over a batch that these layers need; of rows of the token embedding alone, none.

    Args:
        trunk: the architecture; a `Trunk` of texts, unless pooled features are all that is wanted.
        params: its weights.
        batch: of B texts.
        layers: which are wanted.
    """
    if any(layer >= 0 for layer in layers):
        return Pass(*functional_call(as_module(trunk), params, batch.inputs, {"hidden_states": True}))
    return Pass(functional_call(as_module(trunk), params, batch.inputs) if POOLED in layers else None, None)


def tokens_of(
    done: Pass, trunk: TrunkLike, params: Params, batch: Batch, known: Tensor | None, layers: Collection[int]
) -> Tokens:
    """States of a batch's tokens; arguments as of `run_trunk`, whose pass is `done`.

    Args:
        known: (B, 2) of `Tokens.known`.
    """
    ids, mask = batch.inputs
    found: dict[int, Tensor] = {}
    for layer in layers:
        if layer >= 0:
            assert done.hidden is not None
            found[layer] = done.hidden[layer]
        elif layer == ROWS:
            assert trunk.embedding_name is not None
            found[ROWS] = params[trunk.embedding_name].detach()[ids]
        elif layer == POOLED:
            assert done.features is not None
            found[POOLED] = done.features[:, None].expand(*mask.shape, -1)
    return Tokens(found, mask.bool(), known, ids)


def known_of(data: AttackDataset, indices: Tensor, device: torch.device) -> Tensor | None:
    """(N, 2) places of names in the texts at `indices` (N,), on a device."""
    positions = known_positions(data)
    return None if positions is None else positions[indices].to(device)


@dataclass(frozen=True)
class Scaling:
    """(x - mean) @ matrix: what makes the attacker's own tokens have deviation 1 in every direction that is kept."""

    mean: Tensor
    """(E,) float64."""
    matrix: Tensor
    """(E, K) float64."""

    @classmethod
    def of(cls, kind: str, states: Tensor, mask: Tensor) -> Scaling:
        """Of the tokens of texts.

        Args:
            kind: one of `families.token_probe.SCALINGS`.
            states: (N, L, E).
            mask: (N, L) bool.
        """
        tokens = states[mask].double()
        mean = tokens.mean(0)
        if kind == "standardised":
            deviation = tokens.std(0, correction=0)
            # Dead coordinates stay dead; the bound is relative, so that tiny but informative ones come back to scale.
            return cls(mean, torch.diag(1 / deviation.clamp_min(1e-9 * deviation.max().clamp_min(1e-300))))
        centred = tokens - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(tokens))
        kept = variances > FLOOR * variances[-1].clamp_min(1e-300)
        return cls(mean, axes[:, kept] / variances[kept].sqrt())

    def __call__(self, states: Tensor) -> Tensor:
        """(..., K) float64 of states (..., E)."""
        return (states.double() - self.mean) @ self.matrix


@dataclass(frozen=True)
class NameScaling:
    """Names as vectors: components of names of one token, and products of components of each token of two."""

    alone: Scaling
    first: Scaling
    second: Scaling

    @classmethod
    def of(cls, kind: str, names: Names, rank: int) -> NameScaling:
        """Of `rank` components, `whitened`, or `standardised` as a whole, so that large ones stay large."""
        two, white = names.second_known, kind == "whitened"
        parts = (names.first[~two], names.first[two], names.second[two])
        return cls(*(components(part, rank, white=white) for part in parts))

    def __call__(self, names: Names) -> Tensor:
        """(N, F) float64 components of names of one token, and products of those of two; the other kind's are zero."""
        two = names.second_known[:, None].double()
        first, second = self.first(names.first), self.second(names.second)
        products = torch.einsum("ni,nj->nij", first, second).flatten(1)
        return torch.cat([self.alone(names.first) * (1 - two), products * two], dim=1)


@dataclass(frozen=True)
class Names:
    """States of the tokens of N texts' names at one layer."""

    first: Tensor
    """(N, E)."""
    second: Tensor
    """(N, E); any where there is no second token."""
    second_known: Tensor
    """(N,) bool."""
    pieces: Tensor | None = None
    """(N, 2) int64 token ids; any where there is no second token."""

    @classmethod
    def of(cls, tokens: Tokens, layer: int) -> Names:
        """Of texts whose names' places are known."""
        assert tokens.known is not None
        pieces = None if tokens.ids is None else tokens.ids.gather(1, tokens.known.clamp_min(0))
        return cls(tokens.name(layer, 0), tokens.name(layer, 1), tokens.known[:, 1] >= 0, pieces)

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """One after the other."""
        pieces = [part.pieces for part in parts if part.pieces is not None]
        return cls(
            torch.cat([part.first for part in parts]),
            torch.cat([part.second for part in parts]),
            torch.cat([part.second_known for part in parts]),
            torch.cat(pieces) if len(pieces) == len(parts) else None,
        )


OfNames = Callable[[Names], Tensor]
"""(N, F) float64, one vector a name."""


def components(states: Tensor, rank: int, *, white: bool) -> Scaling:
    """The first principal components of states (N, E), scaled to length 1 in the mean; fewer where there are fewer."""
    width = states.shape[1]
    if len(states) < 2:
        return Scaling(states.new_zeros(width, dtype=torch.float64), states.new_zeros(width, 0, dtype=torch.float64))
    values = states.double()
    mean = values.mean(0)
    variances, axes = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    kept = variances > FLOOR * variances[-1].clamp_min(1e-300)
    kept[: max(0, width - rank)] = False
    size = variances[kept] * kept.sum() if white else variances[kept].sum().expand(int(kept.sum()))
    return Scaling(mean, axes[:, kept] / size.sqrt())


def read(
    tokens: Tokens,
    layer: int,
    reading: str,
    position: int,
    scaling: Scaling | OfNames,
    query: Tensor | None,
) -> Tensor:
    """(N, F) float64: one vector a text.

    Args:
        tokens: the texts.
        layer: whose states.
        reading: one of `families.token_probe`, with its `position`.
        scaling: of these states, or what makes vectors of names for a reading of those.
        query: (K,) learned, for the reading of that name.
    """
    if not isinstance(scaling, Scaling):
        return scaling(Names.of(tokens, layer))
    if reading == "position":
        places = torch.full((len(tokens.mask),), position, device=tokens.mask.device)
        return scaling(tokens.at(layer, places))
    if reading == "known":
        return scaling(tokens.name(layer, 0))
    if reading == "pair":
        return torch.cat([scaling(tokens.name(layer, which)) for which in (0, 1)], dim=1)
    states, absent = tokens.states[layer], ~tokens.mask
    if reading == "maximum":
        scaled, absent = scaling(states), absent[..., None]
        largest, smallest = (scaled.masked_fill(absent, sign * torch.inf) for sign in (-1, 1))
        return torch.cat([largest.amax(1), smallest.amin(1)], dim=1)
    assert reading == "query", reading
    assert query is not None
    # The mean is the same for all tokens, so that it drops out of the softmax.
    scores = (states.double() @ (scaling.matrix @ query.double())).masked_fill(absent, -torch.inf)
    weights = scores.softmax(1)
    return scaling(torch.einsum("nl,nle->ne", weights, states.double()))
