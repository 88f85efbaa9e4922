"""Directions that are missing from a residual stream, and what the weights that read it still make of them.

Whoever takes directions out of all weights that write leaves those that read: they were trained while the directions
were there, so what a matrix W makes of a state still goes along with what it would make of a missing direction. The
vector (W x)' W N, for a basis N of the missing directions, tells a part of what stood in them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.reads import StreamReader, stream_readers
from sdm_ray.models.stream import stream_of
from sdm_ray.models.trunk import Trunk

NOTHING = 1e-2
"""Largest variance of a missing direction, relative to the median variance of the wider half. The built-in encoder and
MiniLM have none below 1.5e-2; directions that were erased, and then filled with a little noise, stay below it."""
TOKENS_PER_DIMENSION = 4
"""Tokens per dimension of the stream that are needed to detect missing directions."""
MOST_MATRICES = 12
"""Number of matrices that are used, from the highest layers."""


def missing_directions(tokens: Tensor, known: Tensor | None = None) -> Tensor:
    """(E, R) float64 orthonormal directions along which tokens (N, E) hardly vary; R = 0 if there are too few tokens.

    Args:
        tokens: of as many texts as there are.
        known: (E,) along which no embeddings ever differ, whoever wrote them; it counts as none.
    """
    count, width = tokens.shape
    none = tokens.new_zeros(width, 0, dtype=torch.float64)
    if count < TOKENS_PER_DIMENSION * width:
        return none
    values = tokens.double()
    centred = values - values.mean(0)
    spread = centred.T @ centred / count
    if known is not None:
        axis = known.double() / known.double().norm()
        spread = spread + spread.trace() * torch.outer(axis, axis)
    variances, axes = torch.linalg.eigh(spread)
    missing = variances <= NOTHING * variances[width // 2 :].median()
    # Where half of them are missing the tokens say too little.
    return axes[:, missing] if int(missing.sum()) <= width // 2 else none


def read_states(trunk: TrunkLike) -> tuple[int, ...]:
    """Hidden states on which reading weights act; empty for an unknown architecture."""
    if not isinstance(trunk, Trunk) or not stream_readers(trunk):
        return ()
    return tuple(range(stream_of(trunk).num_states - 1))


def maps_of_missing(trunk: Trunk, params: Params, states: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """(E, R) W' W N each: how what a matrix makes of a state goes along with what it made of missing directions.

    Args:
        trunk: the architecture.
        params: its weights.
        states: (N, E) of tokens, by hidden state; all of `read_states`.

    Returns:
        Of values, of all of attention and of the MLP, the highest layer's first; empty where nothing is missing.
    """
    stream = stream_of(trunk)
    groups: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
    missing: dict[int, Tensor] = {}
    together = None
    if stream.pre_norm:
        together = missing_directions(torch.cat(list(states.values())), _blocked(params, stream.sites[0].gain))
    for reader in stream_readers(trunk):
        if reader.kind == "pooling":
            continue
        if together is not None:
            missing[reader.site] = together
        elif reader.site not in missing:
            missing[reader.site] = _of_site(trunk, params, states, reader)
        if not missing[reader.site].shape[1]:
            continue
        matrix = reader.matrix(params)
        groups[reader.site, reader.kind].append(matrix)
        if reader.kind == "attention":
            groups[reader.site, "values"].append(reader.values_of(matrix))
    ordered = sorted(groups, key=lambda key: (-key[0], key[1] != "values"))[:MOST_MATRICES]
    return tuple(_map(torch.cat(groups[key]), missing[key[0]]) for key in ordered)


def _of_site(trunk: Trunk, params: Params, states: Mapping[int, Tensor], reader: StreamReader) -> Tensor:
    """What is missing where a reader of a post-norm encoder reads; nothing where the state is not given."""
    site = stream_of(trunk).sites[reader.site]
    if site.state is None:
        return next(iter(states.values())).new_zeros(trunk.feature_dim, 0, dtype=torch.float64)
    return missing_directions(states[site.state], _blocked(params, site.gain))


def _blocked(params: Params, gain: str | None) -> Tensor | None:
    """(E,) direction along which a norm lets nothing through, the inverse of its gain; None without a norm."""
    if gain is None:
        return None
    scale = params[gain].detach().double()
    # Where a gain is zero nothing comes through but that dimension, and that is no property of a norm.
    return None if bool((scale == 0).any()) else 1 / scale


def _map(matrix: Tensor, missing: Tensor) -> Tensor:
    return matrix.T @ (matrix @ missing)
