"""Erasure: directions that the weights cannot write to the residual stream.

A direction is a covector a (D,). Its erasure at a site means that a · x = 0 for the stream x there, for every text. If
the site's sum h goes through a norm, x = g (h - mean h) / s + b, this holds if b is orthogonal to a, and h is
orthogonal to the centred a g. So a g is removed from the site's writers, and from the stream below, down to the
embeddings. Gains that this relies on are held fixed. Nothing is added to the model: the remaining weights write nothing
in the direction, and rescaling them cannot restore it.

A metric M chooses what is removed from a written vector w: w becomes w - M S' (S M S')^-1 S w for covectors S. The
identity gives the Euclidean projection; the covariance of states gives LEACE (arXiv 2306.03819), which changes the
states least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Params
from sdm_ray.models.reads import StreamReader, unread
from sdm_ray.models.stream import Stream

TOLERANCE = 1e-8
"""Singular values of unit covectors below this are rounding errors."""
MOST_SHARE = 0.5
"""Largest share of the stream's dimensions that may be removed at one site."""


class Direction(NamedTuple):
    """A covector and the hidden state where it was found."""

    state: int
    """Index of the hidden state."""
    covector: Tensor
    """(D,) float64."""


class Projector(NamedTuple):
    """A projection along a few directions, in factored form: v - (v · S') F for row vectors v."""

    read: Tensor
    """(K, D) S: S v = 0 for a projected vector v."""
    moved: Tensor
    """(K, D) F, with F S' = I."""

    @classmethod
    def of(cls, covectors: Tensor, metric: Tensor | None = None) -> Projector:
        """Projection that removes covectors (·, D) along a metric (D, D); None is the identity."""
        read = independent(covectors)
        if metric is None:
            return cls(read, read)
        along = read @ metric
        return cls(read, torch.linalg.solve(along @ read.T, along))

    def rows(self, matrix: Tensor) -> None:
        """Project each row of (·, D), in place."""
        matrix.addmm_(matrix @ self.read.T, self.moved, alpha=-1)

    def columns(self, matrix: Tensor) -> None:
        """Project each column of (D, ·), in place."""
        matrix.addmm_(self.moved.T, self.read @ matrix, alpha=-1)

    def vector(self, vector: Tensor) -> None:
        """Project a vector (D,), in place."""
        vector.addmv_(self.moved.T, self.read @ vector, alpha=-1)

    def to(self, like: Tensor) -> Projector:
        """Convert to the dtype and device of a tensor."""
        return Projector(self.read.to(like), self.moved.to(like))


@dataclass(frozen=True)
class Erasure:
    """Projections that keep directions out of a stream, by site.

    `before` and `after` hold projectors for the sum at each site and for the output of the site's norm; `held` holds
    the gains that these rely on; `unread` holds projectors for the matrices that read the stream, if these are
    projected too.
    """

    stream: Stream
    before: dict[int, Projector]
    after: dict[int, Projector]
    held: Params
    unread: dict[str, Projector] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        stream: Stream,
        directions: Sequence[Direction],
        params: Params,
        *,
        everywhere: bool,
        metrics: Mapping[int, Tensor] | None = None,
        readers: Sequence[StreamReader] = (),
    ) -> Erasure:
        """Build the erasure of some directions.

        Args:
            stream: stream of the encoder.
            directions: in any order.
            params: weights whose gains are held.
            everywhere: remove each direction at every site of the stream; otherwise at the site where it was found, and
                from the sites below that feed it.
            metrics: (D, D) by site; the identity at other sites.
            readers: matrices that are projected too, so that they ignore what is erased; this does not change their
                output.

        Raises:
            UsageError: if a site would lose more than `MOST_SHARE` of its dimensions.
        """
        asked = _wanted(stream, directions, params, everywhere)
        before, after, held = {}, {}, {}
        carried: Tensor | None = None
        for index in reversed(range(len(stream.sites))):
            site, metric = stream.sites[index], (metrics or {}).get(index)
            wanted = [part for part in (asked.get(index), carried) if part is not None]
            if not wanted:
                continue
            after[index] = before[index] = Projector.of(torch.cat(wanted), metric)
            if site.gain is not None:
                gain = params[site.gain]
                held[site.gain] = gain.detach().clone()
                before[index] = Projector.of(pulled(after[index].read, gain), None if site.rows else metric)
            carried = before[index].read
            if len(carried) > MOST_SHARE * carried.shape[1]:
                raise UsageError(
                    f"train.erase: {len(directions)} directions take {len(carried)} of the {carried.shape[1]} "
                    "dimensions of the residual stream, more than half of them; lower train.erase.num_directions or "
                    "train.erase.num_products, or set train.erase.reach to below"
                )
        like = next(iter(params.values()))
        blind = {}
        for reader in readers:
            if reader.site not in after:
                continue
            own = None if reader.gain is None else params[reader.gain].detach()
            if reader.gain is not None and own is not None:
                held[reader.gain] = own.clone()
            blind[reader.name] = Projector.of(unread(after[reader.site].read, own)).to(like)
        return cls(
            stream,
            {index: value.to(like) for index, value in before.items()},
            {index: value.to(like) for index, value in after.items()},
            held,
            blind,
        )

    @torch.no_grad()
    def apply(self, params: Params) -> None:
        """Project the weights that write to the stream, in place; weights without effect there are unchanged.

        Matrices in `unread` are projected too, and the gains in `held` are restored.
        """
        for index, inside in self.before.items():
            site = self.stream.sites[index]
            for name in site.rows:
                inside.rows(params[name])
            for name in site.columns:
                inside.columns(params[name])
            for name in site.biases:
                inside.vector(params[name])
            if site.norm_bias is not None:
                self.after[index].vector(params[site.norm_bias])
        for name, projector in self.unread.items():
            projector.rows(params[name])
        for name, gain in self.held.items():
            params[name].copy_(gain)

    def applied(self, params: Params) -> Params:
        """Apply to copies of the weights."""
        copied = {name: value.detach().clone() for name, value in params.items()}
        self.apply(copied)
        return copied

    def reads_nothing(self, state: int) -> Tensor:
        """(K, D) covectors whose product with a hidden state is 0."""
        index = self.stream.of_state(state)
        kept = self.after.get(index)
        return next(iter(self.before.values())).read[:0] if kept is None else kept.read

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, without the stream."""
        tensors = {f"held.{name}": gain for name, gain in self.held.items()}
        for kind, projectors in (("before", self.before), ("after", self.after)):
            for index, (read, moved) in projectors.items():
                tensors |= {f"{kind}.{index}.read": read, f"{kind}.{index}.moved": moved}
        for name, (read, moved) in self.unread.items():
            tensors |= {f"unread.{name}.read": read, f"unread.{name}.moved": moved}
        return tensors

    @classmethod
    def from_state(cls, stream: Stream, state: Mapping[str, Tensor]) -> Erasure:
        """Restore from a `state_dict`."""
        held = {name.removeprefix("held."): gain for name, gain in state.items() if name.startswith("held.")}
        found: dict[str, dict[int, Projector]] = {"before": {}, "after": {}}
        for kind, projectors in found.items():
            own = [name.split(".")[1] for name in state if name.startswith(f"{kind}.") and name.endswith(".read")]
            for index in own:
                projectors[int(index)] = Projector(state[f"{kind}.{index}.read"], state[f"{kind}.{index}.moved"])
        blind = {
            name: Projector(state[f"unread.{name}.read"], state[f"unread.{name}.moved"])
            for key in state
            if key.startswith("unread.") and key.endswith(".read")
            for name in [key.removeprefix("unread.").removesuffix(".read")]
        }
        return cls(stream, found["before"], found["after"], held, blind)


def pulled(covectors: Tensor, gain: Tensor) -> Tensor:
    """Pull covectors (K, D) back from a norm's output to its input, without its bias and scale."""
    scaled = covectors * gain.to(covectors)
    return scaled - scaled.mean(-1, keepdim=True)


def independent(covectors: Tensor) -> Tensor:
    """(K, D) orthonormal rows that span covectors (·, D)."""
    unit = covectors / covectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    _, sizes, axes = torch.linalg.svd(unit, full_matrices=False)
    kept: Tensor = axes[sizes > TOLERANCE * sizes[:1].clamp_min(1e-300)]
    return kept


def _wanted(stream: Stream, directions: Sequence[Direction], params: Params, everywhere: bool) -> dict[int, Tensor]:
    """Requested covectors by site."""
    own: dict[int, list[Tensor]] = {}
    for state, covector in directions:
        index = stream.of_state(state)
        site = stream.sites[index]
        own.setdefault(index, []).append(covector.double())
        if not everywhere:
            continue
        if site.only_read:
            assert site.gain is not None
            covector = pulled(covector.double()[None], params[site.gain])[0]
        for other, there in enumerate(stream.sites):
            if other != index and not there.only_read:
                own.setdefault(other, []).append(covector.double())
    return {index: torch.stack(covectors) for index, covectors in own.items()}


__all__ = ["Direction", "Erasure", "Projector", "independent", "pulled"]
