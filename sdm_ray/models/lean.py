"""Cheaper hidden states: the last layer is computed for the first token only, and nothing is computed for padding.

If the pooling uses only the first token, the last layer needs one query. With A heads, attention is then cheaper
without the keys and values of all tokens, by associativity: (W_q x_0)' (W_k x_j) = (W_k' W_q x_0)' x_j, and
sum_j p_j W_v x_j = W_v sum_j p_j x_j. The last layer then costs 2 A D multiplications per token instead of 12 D^2. A
key bias cancels in the softmax, because it adds the same number to all scores of a query. Rotary position embeddings
rotate every key by another angle, so for ModernBERT keys and values are computed.

If the positions of the tokens in the batch are given (`packing.py`), everything except attention is computed on packed
tokens, without padding.

The functions call submodules of Hugging Face models, so they work under `functional_call`. Attention dropout uses the
global random state, as in those modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdm_ray.models.packing import pack, unpack


class Output(NamedTuple):
    """The part of a Hugging Face encoder's output that pooling uses."""

    last_hidden_state: Tensor
    """(B, 1, D) of the first token, or (B, L, D)."""
    pooler_output: Tensor | None
    """(B, D), where the encoder has a pooler."""


def lean_output(
    encoder: Any, input_ids: Tensor, masks: Any, *, first_only: bool = True, places: Tensor | None = None
) -> Output:
    """The hidden states of an encoder's last layer, for the first token or for all tokens.

    Args:
        encoder: the bare encoder, in evaluation or training mode. Its `config.model_type` is one of `EMBEDDINGS`, or
            one of `SHORTCUTS` if `first_only` is true and `places` is None.
        input_ids: (B, L).
        masks: (B, 1, 1, L) additive mask; for ModernBERT, a mask for each type of layer.
        first_only: compute the last layer for the first token only.
        places: (T,) positions of the tokens (`packing.token_places`); with them only attention is computed for padding,
            whose hidden states are then arbitrary.
    """
    kind = encoder.config.model_type
    if kind == "modernbert":
        assert first_only, kind
        assert places is None, kind
        states = _modernbert(encoder, input_ids, masks)[:, None]
    else:
        size, length = input_ids.shape
        layout = _Layout(size, length, places)
        hidden, layers = EMBEDDINGS[kind](encoder, input_ids, layout)
        states = _through(layers, hidden, masks, layout, first_only=first_only)
    pooler = getattr(encoder, "pooler", None)
    return Output(states, None if pooler is None else pooler(states))


class _Layout(NamedTuple):
    """How the hidden states of a batch are stored: padded (B, L, D), or packed without padding (T, D)."""

    size: int
    length: int
    places: Tensor | None

    def ids(self, padded: Tensor) -> Tensor:
        """Token or position ids (B, L) in the layout: (B, L), or (T,) if packed."""
        return padded if self.places is None else padded.flatten().gather(0, self._inside())

    def positions(self, weight: Tensor) -> Tensor:
        """Position embeddings of the tokens in the layout, from a table (P, D)."""
        return weight[: self.length] if self.places is None else F.embedding(self._inside() % self.length, weight)

    def padded(self, stored: Tensor) -> Tensor:
        """Hidden states in the layout as padded ones (B, L, D)."""
        if self.places is None:
            return stored
        return unpack(stored, self.places, self.size * self.length).view(self.size, self.length, -1)

    def stored(self, padded: Tensor) -> Tensor:
        """Padded hidden states (B, L, D) in the layout."""
        return padded if self.places is None else pack(padded.flatten(0, 1), self.places)

    def _inside(self) -> Tensor:
        assert self.places is not None
        return self.places.clamp(max=self.size * self.length - 1)


class _Layer(NamedTuple):
    """The submodules of a post-norm transformer layer."""

    attention: Any
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    mix: nn.Linear
    mix_dropout: nn.Module | None
    mix_norm: nn.Module
    widen: nn.Linear
    activation: Callable[[Tensor], Tensor]
    narrow: nn.Linear
    narrow_dropout: nn.Module
    narrow_norm: nn.Module


def _bert_layer(layer: Any) -> _Layer:
    attention, mix, narrow = layer.attention.self, layer.attention.output, layer.output
    return _Layer(
        attention, attention.query, attention.key, attention.value, mix.dense, mix.dropout, mix.LayerNorm,
        layer.intermediate.dense, layer.intermediate.intermediate_act_fn,
        narrow.dense, narrow.dropout, narrow.LayerNorm,
    )  # fmt: skip


def _distilbert_layer(layer: Any) -> _Layer:
    attention, ffn = layer.attention, layer.ffn
    return _Layer(
        attention, attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, None, layer.sa_layer_norm,
        ffn.lin1, ffn.activation, ffn.lin2, ffn.dropout, layer.output_layer_norm,
    )  # fmt: skip


def _bert(encoder: Any, input_ids: Tensor, layout: _Layout) -> tuple[Tensor, list[_Layer]]:
    embeddings = encoder.embeddings
    places = layout.positions(embeddings.position_embeddings.weight) + embeddings.token_type_embeddings.weight[0]
    hidden = _finished(embeddings, embeddings.word_embeddings(layout.ids(input_ids)) + places)
    if hasattr(encoder, "embeddings_project"):
        hidden = encoder.embeddings_project(hidden)
    return hidden, [_bert_layer(layer) for layer in encoder.encoder.layer]


def _roberta(encoder: Any, input_ids: Tensor, layout: _Layout) -> tuple[Tensor, list[_Layer]]:
    embeddings = encoder.embeddings
    positions = layout.ids(embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx))
    places = embeddings.position_embeddings(positions) + embeddings.token_type_embeddings.weight[0]
    hidden = _finished(embeddings, embeddings.word_embeddings(layout.ids(input_ids)) + places)
    return hidden, [_bert_layer(layer) for layer in encoder.encoder.layer]


def _distilbert(encoder: Any, input_ids: Tensor, layout: _Layout) -> tuple[Tensor, list[_Layer]]:
    embeddings = encoder.embeddings
    places = layout.positions(embeddings.position_embeddings.weight)
    hidden = _finished(embeddings, embeddings.word_embeddings(layout.ids(input_ids)) + places)
    return hidden, [_distilbert_layer(layer) for layer in encoder.transformer.layer]


def _finished(embeddings: Any, total: Tensor) -> Tensor:
    return _dropped(embeddings.LayerNorm(total), embeddings.dropout)


def _through(layers: list[_Layer], hidden: Tensor, mask: Tensor, layout: _Layout, *, first_only: bool) -> Tensor:
    """Last hidden states: (B, 1, D) of the first token, or (B, L, D)."""
    for layer in layers[:-1] if first_only else layers:
        hidden = _after_attention(layer, hidden, _attended(layer, hidden, mask, layout))
    padded, last = layout.padded(hidden), layers[-1]
    if not first_only:
        return padded
    return _after_attention(last, padded[:, 0], _attended_by_first(last, padded, mask[:, 0]))[:, None]


def _attended(layer: _Layer, hidden: Tensor, mask: Tensor, layout: _Layout) -> Tensor:
    """Output of self-attention before its output projection, in the layout; the mask (B, 1, 1, L) is additive."""
    attention, (size, length, _) = layer.attention, layout
    split = (size, length, -1, attention.attention_head_size)
    query, key, value = (
        layout.padded(project(hidden)).view(split).transpose(1, 2).flatten(0, 1)
        for project in (layer.query, layer.key, layer.value)
    )
    masks = mask.expand(-1, len(query) // size, -1, -1).flatten(0, 1)
    weights = torch.baddbmm(masks, query, key.mT, alpha=attention.scaling).softmax(-1)
    attended = torch.bmm(_dropped(weights, attention.dropout), value)
    attended = attended.view(size, -1, length, attention.attention_head_size).transpose(1, 2)
    return layout.stored(attended.reshape(size, length, -1))


def _attended_by_first(layer: _Layer, hidden: Tensor, mask: Tensor) -> Tensor:
    """As `_attended`, for the first token only: (B, D) from hidden states (B, L, D) and an additive mask (B, 1, L)."""
    attention = layer.attention
    by_head = (-1, attention.attention_head_size, hidden.shape[-1])
    # For `bmm`, heads are the batch dimension against weights, texts against hidden states.
    query = layer.query(hidden[:, 0]).view(len(hidden), *by_head[:2]).transpose(0, 1)
    sought = torch.bmm(query, layer.key.weight.view(by_head)).transpose(0, 1)
    weights = torch.baddbmm(mask, sought, hidden.mT, alpha=attention.scaling).softmax(-1)
    weights = _dropped(weights, attention.dropout)
    found = torch.bmm(weights, hidden).transpose(0, 1)
    found = torch.bmm(found, layer.value.weight.view(by_head).mT).transpose(0, 1)
    bias = layer.value.bias.view(by_head[:2])
    if attention.training:  # after dropout the weights do not sum to 1
        bias = weights.sum(-1, keepdim=True) * bias
    return (found + bias).flatten(1)


def _after_attention(layer: _Layer, hidden: Tensor, attended: Tensor) -> Tensor:
    """The part of a layer after attention, on (..., D): output projection, residuals, norms and MLP."""
    mixed = layer.mix(attended)
    mixed = mixed if layer.mix_dropout is None else _dropped(mixed, layer.mix_dropout)
    hidden = layer.mix_norm(mixed + hidden)
    narrowed = layer.narrow(layer.activation(layer.widen(hidden)))
    normalised: Tensor = layer.narrow_norm(_dropped(narrowed, layer.narrow_dropout) + hidden)
    return normalised


def _dropped(value: Tensor, dropout: nn.Module) -> Tensor:
    return F.dropout(value, dropout.p) if dropout.training else value  # type: ignore[arg-type]


def _modernbert(encoder: Any, input_ids: Tensor, masks: dict[str, Tensor]) -> Tensor:
    hidden = encoder.embeddings(input_ids)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    turns = {kind: encoder.rotary_emb(hidden, positions, kind) for kind in set(encoder.config.layer_types)}
    *below, last = encoder.layers
    for layer in below:
        hidden = layer(hidden, masks[layer.attention_type], turns[layer.attention_type])
    attended = _modernbert_attended(last, hidden, masks[last.attention_type], turns[last.attention_type])
    first = hidden[:, 0] + attended
    normalised: Tensor = encoder.final_norm(first + last.mlp(last.mlp_norm(first)))
    return normalised


def _modernbert_attended(layer: Any, hidden: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Attention output (B, D) of the first token; rotation and softmax in float32 as in transformers.

    The rotation at position 0 is the identity, so the query is not rotated.
    """
    attention, states = layer.attn, layer.attn_norm(hidden)
    shape, size = (*states.shape[:2], -1, attention.head_dim), states.shape[-1]
    weight, bias = attention.Wqkv.weight, attention.Wqkv.bias
    first_bias, rest_bias = (None, None) if bias is None else (bias[:size], bias[size:])
    query = F.linear(states[:, 0], weight[:size], first_bias).view(len(states), -1, 1, attention.head_dim)
    key, value = (part.view(shape).transpose(1, 2) for part in F.linear(states, weight[size:], rest_bias).chunk(2, -1))
    cos, sin = turns
    single = key.float()
    one, other = single.chunk(2, -1)
    key = (single * cos + torch.cat([-other, one], -1) * sin).to(key.dtype)
    scores = query @ key.mT * attention.head_dim**-0.5 + mask[:, :, :1]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if attention.training:
        weights = F.dropout(weights, attention.attention_dropout)
    mixed: Tensor = attention.out_drop(attention.Wo((weights @ value).flatten(1)))
    return mixed


EMBEDDINGS: dict[str, Callable[[Any, Tensor, _Layout], tuple[Tensor, list[_Layer]]]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "electra": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
}
"""By `config.model_type`: function (encoder, input_ids (B, L), layout) -> (embedding output, layers)."""

SHORTCUTS = (*EMBEDDINGS, "modernbert")
"""Values of `config.model_type` whose last layer can be computed for the first token only."""
