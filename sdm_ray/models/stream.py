"""Sites where an encoder writes to its residual stream, from the embeddings upwards.

The stream is the vector of a token that every layer reads and adds to. It is written by the embeddings, by attention's
output projection and by the MLP's. A norm in the stream itself (after the embeddings, after every addition of a
post-norm layer) also writes, through its gain and bias. Norms before attention and MLP of a pre-norm layer only read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdm_ray.core.errors import UsageError

if TYPE_CHECKING:
    from sdm_ray.models.trunk import Trunk


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site of the stream: the weights that add to it, and the norm of the sum. Strings are parameter names."""

    state: int | None = None
    """Index of the hidden state after this site, 0 for the embeddings; None if it is not an output of the encoder."""
    rows: tuple[str, ...] = ()
    """Embeddings (·, D) whose rows are added."""
    columns: tuple[str, ...] = ()
    """Matrices (D, ·) whose outputs are added."""
    biases: tuple[str, ...] = ()
    """Vectors (D,) that are added."""
    gain: str | None = None
    """Gain (D,) of the norm of the sum; None without one."""
    norm_bias: str | None = None
    """Bias (D,) of that norm."""
    only_read: bool = False
    """Whether no later site reads the stream itself, as for a final norm: only the norm's output is used."""


@dataclass(frozen=True)
class Stream:
    """The sites of an encoder, from the embeddings upwards."""

    sites: tuple[Site, ...]
    pre_norm: bool
    """Whether the stream has no norm between layers, so that a direction is the same at every site."""

    @property
    def num_states(self) -> int:
        """Number of hidden states: the embeddings and each layer."""
        return 1 + max(site.state for site in self.sites if site.state is not None)

    def of_state(self, state: int) -> int:
        """Position of the site of a hidden state."""
        return next(index for index, site in enumerate(self.sites) if site.state == state)


_POST_NORM = ("attention.output.dense", "attention.output.LayerNorm", "output.dense", "output.LayerNorm")
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bert": ("encoder.layer", _POST_NORM),
    "electra": ("encoder.layer", _POST_NORM),
    "roberta": ("encoder.layer", _POST_NORM),
    "xlm-roberta": ("encoder.layer", _POST_NORM),
    "distilbert": ("transformer.layer", ("attention.out_lin", "sa_layer_norm", "ffn.lin2", "output_layer_norm")),
    "modernbert": ("layers", ("attn.Wo", "", "mlp.Wo", "")),
}
"""By model type: prefix of layers; within a layer, attention's output projection, the norm after it, the MLP's output
and the norm after that. An empty name means no norm."""
KNOWN = tuple(sorted(_KINDS))
"""Supported model types."""


def stream_of(trunk: Trunk) -> Stream:
    """Sites where an encoder writes to its stream.

    Raises:
        UsageError: for an unsupported architecture.
    """
    if trunk.model_type not in _KINDS:
        raise UsageError(
            f"train.erase: where model type {trunk.model_type!r} writes to its residual stream is not known; take one "
            f"of {', '.join(KNOWN)}, or set train.erase.num_directions to 0"
        )
    names = {name for name, _ in trunk.named_parameters()}
    (first,) = (name for name in names if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    base = first[: first.index("embeddings.")]
    where, (attention, attention_norm, mlp, mlp_norm) = _KINDS[trunk.model_type]
    sites = [_embeddings(names, base)]
    num_layers = int(trunk.hf_model.config.num_hidden_layers)
    pre_norm = not mlp_norm
    for layer in range(num_layers):
        prefix = f"{base}{where}.{layer}."
        state = None if pre_norm and layer == num_layers - 1 else layer + 1
        sites += [_writer(names, prefix, attention, attention_norm), _writer(names, prefix, mlp, mlp_norm, state)]
    if pre_norm:
        gain, bias = f"{base}final_norm.weight", f"{base}final_norm.bias"
        sites.append(Site(state=num_layers, gain=gain, norm_bias=bias if bias in names else None, only_read=True))
    return Stream(tuple(sites), pre_norm)


def _embeddings(names: set[str], base: str) -> Site:
    projection = f"{base}embeddings_project"
    if f"{projection}.weight" in names:  # anything below it is not part of the stream
        return _writer(names, base, "embeddings_project", "", 0)
    inside = f"{base}embeddings."
    rows = tuple(sorted(name for name in names if name.startswith(inside) and name.endswith("embeddings.weight")))
    norm = f"{inside}norm" if f"{inside}norm.weight" in names else f"{inside}LayerNorm"
    return Site(state=0, rows=rows, gain=f"{norm}.weight", norm_bias=_present(names, f"{norm}.bias"))


def _writer(names: set[str], prefix: str, writes: str, norm: str, state: int | None = None) -> Site:
    bias = _present(names, f"{prefix}{writes}.bias")
    return Site(
        state=state,
        columns=(f"{prefix}{writes}.weight",),
        biases=() if bias is None else (bias,),
        gain=f"{prefix}{norm}.weight" if norm else None,
        norm_bias=_present(names, f"{prefix}{norm}.bias") if norm else None,
    )


def _present(names: set[str], name: str) -> str | None:
    return name if name in names else None


__all__ = ["KNOWN", "Site", "Stream", "stream_of"]
