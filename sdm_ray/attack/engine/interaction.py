"""What the pieces of a name tell together: states of names put into texts, less what each piece adds by itself.

The layers of an encoder combine what the pieces of a name say. In a text the combination drowns among what every piece
and all other words add. Whoever puts names into a few texts of his own, and takes from the state of a pair the means
over all partners of either piece, keeps the combination: the interaction of a two-way analysis of variance.
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
"""Texts that names are put into, and partners that a piece is averaged over; the first that `PASSES` allows."""
PASSES = 2048
"""Texts that may go through the trunk for the names of `COUNTED` texts. Where the least sizes take more, names hardly
share pieces: there is no table of them."""
COUNTED = 512
"""Texts whose names are counted."""
ALONE = 16
"""Principal components of a name of one piece."""
ROUNDING = 64
"""Interactions up to this many times the rounding of the states' numbers are none."""

WIDE = 4096
"""Numbers of a name's interactions above which those of all names are told along the axes of the table's names."""
KEPT_BYTES = 256 * 1024**2
"""Memory that states of single names may take; those that were run first make room."""

Pair = tuple[int, int]
"""Token ids of the pieces of a name."""


@dataclass(frozen=True)
class Hosts:
    """T texts that names of two pieces are put into, one after the other."""

    ids: Sequence[Tensor]
    """Each (L,) int64."""
    places: Tensor
    """(T, 2) where the pieces go."""

    def holding(self, which: int, names: Sequence[Pair]) -> Tensor:
        """(M, L) token ids of one of the texts with M names in it."""
        ids = self.ids[which].repeat(len(names), 1)
        ids[:, self.places[which]] = torch.tensor(names)
        return ids


class NameStates:
    """Interactions of names' pieces in the states of all layers, computed when a name is first asked for.

    States are taken at P = 5 places: the first token, both pieces, the token after them, and the mean over all tokens.

    Args:
        trunk: a transformers encoder of texts.
        params: its weights.
        hosts: texts that names are put into.
        firsts: token ids of the first pieces that a second one's mean is over.
        seconds: of the second pieces that a first one's mean is over.
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
        """(R, H, P, E) float64 interactions of all names of the first and second pieces that means are over."""
        self.factors = _factors(self.table, states, torch.finfo(next(iter(params.values())).dtype).eps)
        """(H, P, 1) that give the table's interactions length 1 in the mean; 0 where there are none."""

    def of(self, names: Sequence[Pair]) -> Tensor:
        """(M, H, P, E) float64 interactions of M names, H hidden states."""
        self._know(names)
        found = [self._states[a, b] - self._of_first[a] - self._of_second[b] + self._mean for a, b in names]
        while len(self._states) * self._mean.nbytes > KEPT_BYTES:
            del self._states[next(iter(self._states))]
        return torch.stack(found) if found else self._mean.new_zeros(0, *self._mean.shape)

    def _know(self, names: Sequence[Pair]) -> None:
        """Let all that these names take be there."""
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
        """(together, H, P, E) float64 states of as many names after each other, means over the texts."""
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
        at = hidden[:, :, [0, first, second, min(second + 1, ids.shape[1] - 1)]]
        return torch.cat([at, hidden.mean(2, keepdim=True)], dim=2).movedim(1, 0).double()


def name_states(trunk: TrunkLike, params: Params, examples: ScoringSet, known: Tensor, seed: int) -> NameStates | None:
    """Of the names of two pieces in an attacker's texts; None where they make no table, see `SIZES`.

    Args:
        trunk: a transformers encoder of texts.
        params: its weights.
        examples: the texts.
        known: (N, 2) host; places of names in the order of `examples`.
        seed: of the texts that names are put into.
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
    # Of some texts at random, the shorter ones: they are cheap, and what follows a name is in them too.
    chosen = sorted((rows[place] for place in order[: 4 * num_texts]), key=lambda row: len(ids[row]))[:num_texts]
    return NameStates(trunk, params, Hosts([ids[row] for row in chosen], known[chosen]), firsts, seconds)


def _sizes(names: Sequence[Pair]) -> tuple[int, int] | None:
    """Of `SIZES`, for texts with such names; None where all take too many passes."""
    firsts, seconds, pairs = len({a for a, _ in names}), len({b for _, b in names}), len(set(names))

    def passes(texts: int, partners: int) -> int:
        more = max(0, firsts - partners) + max(0, seconds - partners)
        return texts * (min(firsts, partners) * min(seconds, partners) + more * partners + pairs)

    return next((sizes for sizes in SIZES if passes(*sizes) <= PASSES), None)


@dataclass(frozen=True)
class InteractionScaling:
    """Names as vectors: components of those of one piece, and of those of two what the pieces tell together."""

    alone: Scaling
    states: NameStates | None
    """None where there is no table of names: then those of two are read as if they were of one."""
    layer: int
    """Which hidden state is read; below 1 all of them but that of the embeddings, whose tokens have not met."""
    axes: Tensor | None = None
    """(F, K) along which interactions are told; None where they are few numbers."""

    @classmethod
    def of(cls, names: Names, states: NameStates | None, layer: int) -> InteractionScaling:
        """Of attacker-train's names, at the layer at which those of one piece are read; see the attributes."""
        alone = names.first if states is None else names.first[~names.second_known]
        found = cls(components(alone, ALONE, white=False), states, layer)
        if states is None or found._flat(states.table[:1]).shape[1] <= WIDE:
            return found
        # The table's names lie in as many dimensions as there are: nothing of them is lost.
        _, _, axes = torch.linalg.svd(found._flat(states.table), full_matrices=False)
        return replace(found, axes=axes.T)

    def __call__(self, names: Names) -> Tensor:
        """(N, F) float64, of length 1 in the mean; what is of the other kind of names is zero."""
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
        """(M, ·) of length 1 in the mean, of interactions (M, H, P, E)."""
        assert self.states is not None
        layers = slice(self.layer, self.layer + 1) if self.layer > 0 else slice(1, None)
        factors = self.states.factors[layers]
        return (interactions[:, layers] * factors).flatten(1) / (factors > 0).sum().clamp_min(1).sqrt()


def _factors(table: Tensor, states: Tensor, rounding: float) -> Tensor:
    """`NameStates.factors` of interactions and states (R, H, P, E), whose numbers are rounded by a share of them."""
    sizes, largest = (values.square().sum(3, keepdim=True).mean(0).sqrt() for values in (table, states))
    # What is no more than rounding is nothing, however far it could be blown up.
    return torch.where(sizes > ROUNDING * rounding * largest, 1 / sizes.clamp_min(1e-300), 0.0)
