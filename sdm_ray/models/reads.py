"""Weights that read an encoder's residual stream, and the norms that they read through.

These are attention's queries, keys and values, the first matrix of the MLP, and the pooling layer. In a post-norm layer
they read the stream directly; in a pre-norm layer, through a norm of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sdm_ray.core.types import Params

if TYPE_CHECKING:
    from sdm_ray.models.trunk import Trunk

Kind = Literal["attention", "mlp", "pooling"]


@dataclass(frozen=True, kw_only=True)
class StreamReader:
    """A matrix that reads the stream. Strings are parameter names."""

    name: str
    """Name of the matrix (K, D)."""
    kind: Kind
    site: int
    """Position in `Stream.sites` of the site that it reads after."""
    values: bool | None = None
    """For attention, whether the matrix makes the values; None if it makes queries, keys and values, a third each."""
    gain: str | None = None
    """Gain (D,) of the norm that it reads through; None without a norm."""

    def matrix(self, params: Params) -> Tensor:
        """(K, D) float64 effective matrix on the stream, without the norm's scale."""
        matrix = params[self.name].detach().double()
        if self.gain is None:
            return matrix
        scaled = matrix * params[self.gain].detach().double()
        return scaled - scaled.mean(1, keepdim=True)

    def values_of(self, matrix: Tensor) -> Tensor:
        """Rows of `matrix` that make values; empty for queries and keys."""
        if self.values is None:
            return matrix[2 * len(matrix) // 3 :]
        return matrix if self.values else matrix[:0]


_SELF = ("attention.self.query", "attention.self.key", "attention.self.value")
_KINDS: dict[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "bert": ("encoder.layer", _SELF, "intermediate.dense", ("pooler.dense",)),
    "electra": ("encoder.layer", _SELF, "intermediate.dense", ("classifier.dense",)),
    "roberta": ("encoder.layer", _SELF, "intermediate.dense", ("classifier.dense",)),
    "xlm-roberta": ("encoder.layer", _SELF, "intermediate.dense", ("classifier.dense",)),
    "distilbert": (
        "transformer.layer", ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "ffn.lin1",
        ("pre_classifier",),
    ),
    "modernbert": ("layers", ("attn.Wqkv",), "mlp.Wi", ("head.dense",)),
}  # fmt: skip
"""By model type: prefix of layers; queries, keys and values of a layer (or one matrix for all); the MLP's first matrix;
pooling layers, by the end of their names."""


def stream_readers(trunk: Trunk) -> tuple[StreamReader, ...]:
    """Matrices that read an encoder's stream, from the bottom up; empty for unknown architectures."""
    if trunk.model_type not in _KINDS:
        return ()
    names = {name for name, _ in trunk.named_parameters()}
    first = next(name for name in names if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    base = first[: first.index("embeddings.")]
    where, attention, mlp, pooling = _KINDS[trunk.model_type]
    num_layers, pre_norm = int(trunk.hf_model.config.num_hidden_layers), trunk.model_type == "modernbert"
    found = []
    for layer in range(num_layers):
        prefix = f"{base}{where}.{layer}."
        gains = [_present(names, f"{prefix}{norm}.weight") for norm in ("attn_norm", "mlp_norm")]
        for place, name in enumerate(attention):
            values = None if len(attention) == 1 else place == len(attention) - 1
            reader = StreamReader(
                name=f"{prefix}{name}.weight", kind="attention", site=2 * layer, values=values, gain=gains[0]
            )
            found.append(reader)
        found.append(StreamReader(name=f"{prefix}{mlp}.weight", kind="mlp", site=2 * layer + 1, gain=gains[1]))
    last = 2 * num_layers + int(pre_norm)
    pools = [name for name in sorted(names) if name.endswith(tuple(f"{end}.weight" for end in pooling))]
    found += [StreamReader(name=name, kind="pooling", site=last) for name in pools]
    return tuple(found)


def unread(covectors: Tensor, gain: Tensor | None) -> Tensor:
    """Covectors that can be projected out of a matrix without changing its output, if its inputs x satisfy S x = 0.

    Args:
        covectors: (K, D) S.
        gain: (D,) gain of the norm before the matrix; None if x is read directly.

    Returns:
        (·, D) covectors a with a · y = 0 for every input y of the matrix. A norm subtracts the mean of x, so these are
        the combinations of S whose elements sum to 0, and the vector of ones.
    """
    if gain is None:
        return covectors
    covectors = covectors.double()
    ones = torch.ones_like(covectors[:1])
    sums = covectors.sum(1)
    # Combinations of S whose elements sum to 0: orthogonal to the vector of row sums.
    _, _, axes = torch.linalg.svd(sums[None])
    balanced = axes[1:] @ covectors if sums.norm() > 1e-8 * covectors.norm() else covectors
    scaled = gain.double().where(gain.abs() > 1e-12, torch.ones_like(gain).double())
    return torch.cat([balanced, ones]) / scaled


def _present(names: set[str], name: str) -> str | None:
    return name if name in names else None


__all__ = ["StreamReader", "stream_readers", "unread"]
