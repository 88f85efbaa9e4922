"""Directions that nothing may write to the residual stream, taken out of the weights that would.

A direction is a covector a (D,), and its erasure at a site means that a · x = 0 for the stream x there, whatever the
text. Where the site's sum goes through a norm, x = g (h - mean h) / s + b with h the sum, this is so if b is orthogonal
to a and h to the centred a g; so the site's writers lose a g, and so does the stream that comes from below, down to the
embeddings. Gains that this rests on are held as they were. Nothing is added to the model: the weights that are left
write nothing there, and no rescaling of them brings it back.

What is taken out of a vector w that is written is chosen by a metric M: w becomes w - M S' (S M S')^-1 S w for
covectors S. The identity gives the nearest point in Euclidean distance; the covariance of states gives that of LEACE
(arXiv 2306.03819), which changes states least.
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
"""Singular values of unit covectors below this are rounding."""
MOST_SHARE = 0.5
"""Of the stream's dimensions that may be taken at one site."""


class Direction(NamedTuple):
    """A covector and where it was found."""

    state: int
    """Hidden state."""
    covector: Tensor
    """(D,) float64."""


class Projector(NamedTuple):
    """A projection along a few directions, factored: v - (v · S') F of vectors v."""

    read: Tensor
    """(K, D) S: what is read of a projected vector is 0."""
    moved: Tensor
    """(K, D) F, with F S' the identity."""

    @classmethod
    def of(cls, covectors: Tensor, metric: Tensor | None = None) -> Projector:
        """The projection that leaves nothing of covectors (·, D), along a metric (D, D); None is the identity."""
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
        """In the type and on the device of a tensor."""
        return Projector(self.read.to(like), self.moved.to(like))


@dataclass(frozen=True)
class Erasure:
    """What is kept out of a stream, site by site.

    `before` and `after` hold a projector for the sum at each site, and for what the site's norm puts out; `held` the
    gains that these rest on; `unread` a projector for each matrix that reads the stream, where those are projected too.
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
        """The erasure of some directions.

        Args:
            stream: where the encoder writes.
            directions: in any order.
            params: weights whose gains are held.
            everywhere: take each direction out at every site of the stream; else at the site where it was found, and
                of what below feeds it.
            metrics: (D, D) by site; the others have the identity.
            readers: matrices that shall not act on what is erased either, which changes nothing of what they do.

        Raises:
            UsageError: where a site would lose more than `MOST_SHARE` of its dimensions.
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
                    "set train.erase.reach to below"
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
        """Take out of weights, in place, what they would write; of weights that write nothing there, nothing.

        Of matrices of `unread`, take out what they would make of it.
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
        """Weights as `apply` makes them, in new tensors."""
        copied = {name: value.detach().clone() for name, value in params.items()}
        self.apply(copied)
        return copied

    def reads_nothing(self, state: int) -> Tensor:
        """(K, D) covectors that read 0 of a hidden state."""
        index = self.stream.of_state(state)
        kept = self.after.get(index)
        return next(iter(self.before.values())).read[:0] if kept is None else kept.read

    def state_dict(self) -> dict[str, Tensor]:
        """All of it but the stream."""
        tensors = {f"held.{name}": gain for name, gain in self.held.items()}
        for kind, projectors in (("before", self.before), ("after", self.after)):
            for index, (read, moved) in projectors.items():
                tensors |= {f"{kind}.{index}.read": read, f"{kind}.{index}.moved": moved}
        for name, (read, moved) in self.unread.items():
            tensors |= {f"unread.{name}.read": read, f"unread.{name}.moved": moved}
        return tensors

    @classmethod
    def from_state(cls, stream: Stream, state: Mapping[str, Tensor]) -> Erasure:
        """What `state_dict` was taken of."""
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
    """Covectors (K, D) of a norm's output, its bias apart, as those of its input; the norm's scale is left out."""
    scaled = covectors * gain.to(covectors)
    return scaled - scaled.mean(-1, keepdim=True)


def independent(covectors: Tensor) -> Tensor:
    """(K, D) orthonormal rows that span covectors (·, D)."""
    unit = covectors / covectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    _, sizes, axes = torch.linalg.svd(unit, full_matrices=False)
    kept: Tensor = axes[sizes > TOLERANCE * sizes[:1].clamp_min(1e-300)]
    return kept


def _wanted(stream: Stream, directions: Sequence[Direction], params: Params, everywhere: bool) -> dict[int, Tensor]:
    """Covectors by site."""
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
