"""Interactions of the two words of a name: hidden states of inserted names minus each word's own contribution.

The code calls the two words pieces. An encoder's layers combine information from both pieces, but in a hidden state the
combined part is small beside the contributions of each piece and of the other words. The attacker inserts names into a
few of his own texts and subtracts from a name's state the mean over all second pieces and the mean over all first
pieces. What remains is the interaction term of a two-way analysis of variance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdm_ray.attack.engine.scoring import EXAMPLES_PER_BATCH, ScoringSet
from sdm_ray.attack.engine.token_states import Names, Scaling, components, run_trunk
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Batch, Params
from sdm_ray.models.interface import TrunkLike

SIZES = ((8, 16), (4, 16), (4, 8), (2, 8), (2, 4), (1, 4))
"""(host texts, partners per piece), in order of preference; the first pair within `PASSES` is used. Names are inserted
into host texts; a piece's mean is over its partners."""
PASSES = 2048
"""Most texts that may pass through the trunk for the names in `COUNTED` texts. If even the smallest sizes need more,
names share few pieces, and there is no table."""
COUNTED = 512
"""Number of texts whose names are counted for this."""
ALONE = 16
"""Number of principal components for a one-word name."""
ROUNDING = 64
"""Interactions up to this multiple of the states' rounding error count as zero."""

WIDE = 4096
"""Most elements of a name's interactions; longer ones are projected onto the singular vectors of the table's."""
KEPT_BYTES = 256 * 1024**2
"""Cache size for states of single names; the oldest entries are evicted."""

Pair = tuple[int, int]
"""Token ids of a name's two pieces."""


@dataclass(frozen=True)
class Hosts:
    """T texts into which two-word names are inserted."""

    ids: Sequence[Tensor]
    """Token ids of each text, (L,) int64."""
    places: Tensor
    """(T, 2) positions of the two pieces."""

    def holding(self, which: int, names: Sequence[Pair]) -> Tensor:
        """(M, L) token ids of text `which` with each of M names inserted."""
        ids = self.ids[which].repeat(len(names), 1)
        ids[:, self.places[which]] = torch.tensor(names)
        return ids


class NameStates:
    """Interactions of names in the hidden states of all layers, computed on demand and cached.

    States are taken at P = 5 positions: the first token, both pieces, the token after them, and the mean over all
    tokens.

    Args:
        trunk: a transformers encoder of texts.
        params: its weights.
        hosts: texts into which names are inserted.
        firsts: token ids of the first pieces over which a second piece's mean is computed.
        seconds: token ids of the second pieces over which a first piece's mean is computed.
    """

    def __init__(
        self, trunk: TrunkLike, params: Params, hosts: Hosts, firsts: Sequence[int], seconds: Sequence[int]
    ) -> None:
        self._trunk, self._params, self._hosts = trunk, params, hosts
        self._device = next(iter(params.values())).device
        self._firsts, self._seconds = tuple(firsts), tuple(seconds)
        grid = [(first, second) for first in self._firsts for second in self._seconds]
        states = torch.cat(list(self._run(grid, 1)))
        table = states.reshape(len(self._firsts), len(self._seconds), *states.shape[1:])
        self._states = dict(zip(grid, states, strict=True))
        self._of_first = dict(zip(self._firsts, table.mean(1), strict=True))
        self._of_second = dict(zip(self._seconds, table.mean(0), strict=True))
        self._mean = states.mean(0)
        self.table = self.of(grid)
        """(R, H, P, E) float64 interactions of all R combinations of `firsts` and `seconds`."""
        self.factors = _factors(self.table, states, torch.finfo(next(iter(params.values())).dtype).eps)
        """(H, P, 1) factors that scale the table's interactions to root-mean-square length 1; 0 if there are none."""

    def of(self, names: Sequence[Pair]) -> Tensor:
        """(M, H, P, E) float64 interactions of M names in H hidden states of width E."""
        self._know(names)
        found = [self._states[a, b] - self._of_first[a] - self._of_second[b] + self._mean for a, b in names]
        while len(self._states) * self._mean.nbytes > KEPT_BYTES:
            del self._states[next(iter(self._states))]
        return torch.stack(found) if found else self._mean.new_zeros(0, *self._mean.shape)

    def _know(self, names: Sequence[Pair]) -> None:
        """Compute the states and means that these names need and that are not cached."""
        firsts = sorted({first for first, _ in names} - self._of_first.keys())
        with_partners = [(first, second) for first in firsts for second in self._seconds]
        means = (states.mean(0) for states in self._run(with_partners, len(self._seconds)))
        self._of_first |= dict(zip(firsts, means, strict=True))
        seconds = sorted({second for _, second in names} - self._of_second.keys())
        with_partners = [(first, second) for second in seconds for first in self._firsts]
        means = (states.mean(0) for states in self._run(with_partners, len(self._firsts)))
        self._of_second |= dict(zip(seconds, means, strict=True))
        pairs = sorted(set(names) - self._states.keys())
        self._states |= {pair: states[0] for pair, states in zip(pairs, self._run(pairs, 1), strict=True)}

    def _run(self, names: Sequence[Pair], together: int) -> Iterator[Tensor]:
        """Yield (together, H, P, E) float64 states of `together` consecutive names, averaged over the host texts."""
        size = max(1, EXAMPLES_PER_BATCH // together) * together
        for start in range(0, len(names), size):
            part = names[start : start + size]
            states = torch.stack([self._pass(text, part) for text in range(len(self._hosts.ids))]).mean(0)
            yield from torch.split(states, together)

    def _pass(self, text: int, names: Sequence[Pair]) -> Tensor:
        ids = self._hosts.holding(text, names).to(self._device)
        batch = Batch((ids, torch.ones_like(ids)), torch.zeros(len(ids)))
        hidden = run_trunk(self._trunk, self._params, batch, {0}).hidden
        assert hidden is not None
        first, second = self._hosts.places[text].tolist()
        at = hidden[:, :, [0, first, second, min(max(first, second) + 1, ids.shape[1] - 1)]]
        return torch.cat([at, hidden.mean(2, keepdim=True)], dim=2).movedim(1, 0).double()


def name_states(trunk: TrunkLike, params: Params, examples: ScoringSet, known: Tensor, seed: int) -> NameStates | None:
    """The interactions of the two-word names in an attacker's texts; None if names share too few pieces (`PASSES`).

    Args:
        trunk: a transformers encoder of texts.
        params: its weights.
        examples: the texts.
        known: (N, 2) positions of names on the host, in the order of `examples`.
        seed: seed of the choice of host texts.
    """
    ids = [
        row[mask.bool()] for batch in examples.batches for row, mask in zip(*map(Tensor.cpu, batch.inputs), strict=True)
    ]
    rows = (known >= 0).all(1).nonzero()[:, 0].tolist()
    names = [tuple(ids[row][known[row]].tolist()) for row in rows]
    counts = [Counter(name[which] for name in names) for which in (0, 1)]
    if min(map(len, counts)) < 2:
        return None
    order = torch.randperm(len(rows), generator=seeded(seed, "hosts of names")).tolist()
    sizes = _sizes([names[place] for place in order[:COUNTED]])
    if sizes is None:
        return None
    num_texts, num_partners = sizes
    firsts, seconds = (sorted(piece for piece, _ in count.most_common(num_partners)) for count in counts)
    # The shortest of some random texts: they are cheap, and the token after the name occurs in them too.
    chosen = sorted((rows[place] for place in order[: 4 * num_texts]), key=lambda row: len(ids[row]))[:num_texts]
    return NameStates(trunk, params, Hosts([ids[row] for row in chosen], known[chosen]), firsts, seconds)


def _sizes(names: Sequence[Pair]) -> tuple[int, int] | None:
    """The first of `SIZES` that needs at most `PASSES` texts for these names; None if there is none."""
    firsts, seconds, pairs = len({a for a, _ in names}), len({b for _, b in names}), len(set(names))

    def passes(texts: int, partners: int) -> int:
        more = max(0, firsts - partners) + max(0, seconds - partners)
        return texts * (min(firsts, partners) * min(seconds, partners) + more * partners + pairs)

    return next((sizes for sizes in SIZES if passes(*sizes) <= PASSES), None)


@dataclass(frozen=True)
class InteractionScaling:
    """Vectors of names: principal components of one-word names, and interactions of two-word names."""

    alone: Scaling
    states: NameStates | None
    """Interactions; None if there is no table of names: two-word names are then treated as one-word names."""
    layer: int
    """Hidden state whose interactions are used; below 1 all except the embeddings, where tokens do not interact."""
    axes: Tensor | None = None
    """(F, K) axes onto which interactions are projected; None if they have few elements."""

    @classmethod
    def of(cls, names: Names, states: NameStates | None, layer: int) -> InteractionScaling:
        """Fit to attacker-train's names, given as states at the layer for one-word names; see the attributes."""
        alone = names.first if states is None else names.first[~names.second_known]
        found = cls(components(alone, ALONE, white=False), states, layer)
        if states is None or found._flat(states.table[:1]).shape[1] <= WIDE:
            return found
        # There are as many axes as names in the table, so the projection keeps the table's names exactly.
        _, _, axes = torch.linalg.svd(found._flat(states.table), full_matrices=False)
        return replace(found, axes=axes.T)

    def __call__(self, names: Names) -> Tensor:
        """(N, F) float64 vectors of root-mean-square length 1. Elements for the other kind of names (one-word or
        two-word) are zero."""
        two = names.second_known
        alone = self.alone(names.first)
        if self.states is None:
            return alone
        assert names.pieces is not None
        pairs = [(a, b) for a, b in names.pieces[two].tolist()]
        parts = [pairs[start : start + EXAMPLES_PER_BATCH] for start in range(0, len(pairs), EXAMPLES_PER_BATCH)]
        told = torch.cat([self._told(part) for part in parts or [[]]])
        together = alone.new_zeros(len(alone), told.shape[1])
        together[two] = told
        return torch.cat([alone * ~two[:, None], together], dim=1)

    def _told(self, pairs: Sequence[Pair]) -> Tensor:
        assert self.states is not None
        flat = self._flat(self.states.of(pairs))
        return flat if self.axes is None else flat @ self.axes

    def _flat(self, interactions: Tensor) -> Tensor:
        """Flatten interactions (M, H, P, E) to (M, ·) and scale them to root-mean-square length 1."""
        assert self.states is not None
        layers = slice(self.layer, self.layer + 1) if self.layer > 0 else slice(1, None)
        factors = self.states.factors[layers]
        return (interactions[:, layers] * factors).flatten(1) / (factors > 0).sum().clamp_min(1).sqrt()


def _factors(table: Tensor, states: Tensor, rounding: float) -> Tensor:
    """`NameStates.factors` from interactions and states (R, H, P, E); `rounding` is the relative rounding error."""
    sizes, largest = (values.square().sum(3, keepdim=True).mean(0).sqrt() for values in (table, states))
    # Interactions of the size of rounding errors are set to zero instead of being scaled up.
    return torch.where(sizes > ROUNDING * rounding * largest, 1 / sizes.clamp_min(1e-300), 0.0)
