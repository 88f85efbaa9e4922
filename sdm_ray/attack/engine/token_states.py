"""States of single tokens under given weights, and functions that compute one vector per text from them."""

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
"""Fraction of the largest variance below which a principal axis is rounding error and is dropped."""


@dataclass(frozen=True)
class Tokens:
    """Token states of N texts at some layers."""

    states: dict[int, Tensor]
    """(N, L, E) by layer; pooled features are repeated for every token."""
    mask: Tensor
    """(N, L) bool; true for tokens, false for padding."""
    known: Tensor | None
    """(N, 2) positions of a name's tokens, negative if unknown. None if the data have no positions."""
    ids: Tensor | None = None
    """(N, L) int64."""

    def at(self, layer: int, positions: Tensor) -> Tensor:
        """(N, E) states of the tokens at `positions` (N,); of the last token in a text that is shorter."""
        last = self.mask.sum(1) - 1
        return self.states[layer][torch.arange(len(last), device=last.device), torch.minimum(positions, last)]

    def name(self, layer: int, which: int) -> Tensor:
        """(N, E) states of the first (`which` 0) or second (1) token of the name. If the first is unknown, the token at
        position 1 is used; if the second is unknown, the token after the first."""
        assert self.known is not None
        first = torch.where(self.known[:, 0] < 0, 1, self.known[:, 0])
        return self.at(layer, first if which == 0 else torch.where(self.known[:, 1] < 0, first + 1, self.known[:, 1]))


class Pass(NamedTuple):
    """Outputs of a forward pass over a batch of B texts; None for outputs that were not requested."""

    features: Tensor | None
    """(B, D) pooled features."""
    hidden: Tensor | None
    """(H, B, L, E) states of the embeddings and of each layer."""


@torch.no_grad()
def run_trunk(trunk: TrunkLike, params: Params, batch: Batch, layers: Collection[int]) -> Pass:
    """Run the forward pass that these layers need; rows of the token embedding need none.

    Args:
        trunk: the architecture; any trunk if only pooled features are needed, else a `Trunk`.
        params: its weights.
        batch: a batch of B texts.
        layers: layers whose states are needed.
    """
    if any(layer >= 0 for layer in layers):
        return Pass(*functional_call(as_module(trunk), params, batch.inputs, {"hidden_states": True}))
    return Pass(functional_call(as_module(trunk), params, batch.inputs) if POOLED in layers else None, None)


def tokens_of(
    done: Pass, trunk: TrunkLike, params: Params, batch: Batch, known: Tensor | None, layers: Collection[int]
) -> Tokens:
    """Token states of a batch; arguments as in `run_trunk`, whose result is `done`.

    Args:
        known: (B, 2), see `Tokens.known`.
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
    """(N, 2) positions of names in the texts at `indices` (N,), on `device`; None if the data have none."""
    positions = known_positions(data)
    return None if positions is None else positions[indices].to(device)


@dataclass(frozen=True)
class Scaling:
    """The map (x - mean) @ matrix, which scales every retained direction of the attacker's own tokens."""

    mean: Tensor
    """(E,) float64."""
    matrix: Tensor
    """(E, K) float64."""

    @classmethod
    def of(cls, kind: str, states: Tensor, mask: Tensor) -> Scaling:
        """Fit to the tokens of texts; every direction gets standard deviation 1.

        Args:
            kind: one of `families.token_probe.SCALINGS`.
            states: (N, L, E).
            mask: (N, L) bool.
        """
        tokens = states[mask].double()
        mean = tokens.mean(0)
        if kind == "standardised":
            deviation = tokens.std(0, correction=0)
            # Constant coordinates remain constant. The bound is relative, so that small informative ones are scaled up.
            return cls(mean, torch.diag(1 / deviation.clamp_min(1e-9 * deviation.max().clamp_min(1e-300))))
        centred = tokens - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(tokens))
        kept = variances > FLOOR * variances[-1].clamp_min(1e-300)
        return cls(mean, axes[:, kept] / variances[kept].sqrt())

    def __call__(self, states: Tensor) -> Tensor:
        """Scaled states (..., K) float64, from states (..., E)."""
        return (states.double() - self.mean) @ self.matrix


@dataclass(frozen=True)
class NameScaling:
    """Vectors of names: principal components of one-token names; products of the components of both tokens of two-token
    names."""

    alone: Scaling
    first: Scaling
    second: Scaling

    @classmethod
    def of(cls, kind: str, names: Names, rank: int) -> NameScaling:
        """Fit `rank` components. `whitened` scales each component to the same variance, `standardised` all by one
        factor."""
        two, white = names.second_known, kind == "whitened"
        parts = (names.first[~two], names.first[two], names.second[two])
        return cls(*(components(part, rank, white=white) for part in parts))

    def __call__(self, names: Names) -> Tensor:
        """(N, F) float64 vectors. Elements for the other kind of names (one-token or two-token) are zero."""
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
    """(N, E); arbitrary if there is no second token."""
    second_known: Tensor
    """(N,) bool."""
    pieces: Tensor | None = None
    """(N, 2) int64 token ids; the second is arbitrary if there is no second token."""

    @classmethod
    def of(cls, tokens: Tokens, layer: int) -> Names:
        """The names of texts with known positions, at one layer."""
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
"""Function from N names to vectors (N, F) float64, one per name."""


def components(states: Tensor, rank: int, *, white: bool) -> Scaling:
    """Projection onto the first `rank` principal components of states (N, E), or fewer if their rank is lower.

    The result has root-mean-square length 1. With `white` every component has the same variance.
    """
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
    """(N, F) float64 vectors, one per text.

    Args:
        tokens: token states of the texts.
        layer: layer of the states.
        reading: a reading of `families.token_probe`.
        position: token position, for the reading `position`.
        scaling: scaling of these states; for readings in `OF_NAMES`, the function that computes vectors of names.
        query: (K,) learned query, for the reading `query`.
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
    # The mean adds the same number to all scores, so it cancels in the softmax.
    scores = (states.double() @ (scaling.matrix @ query.double())).masked_fill(absent, -torch.inf)
    weights = scores.softmax(1)
    return scaling(torch.einsum("nl,nle->ne", weights, states.double()))
