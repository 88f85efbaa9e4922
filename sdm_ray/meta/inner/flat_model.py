"""A trunk as a pure function of one flat parameter vector, and the part of that vector that an episode needs.

On one flat vector an optimiser update launches a handful of kernels whatever the number of layers; the outer step of a
small encoder is bound by kernel launches. An episode needs only the token embedding's rows of the tokens that occur in
it. The other rows get no gradient, and an element-wise optimiser updates each element independently of the others, so
leaving them out does not change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from sdm_ray.core.types import Batch, Params
from sdm_ray.data.tokenized import power_of_two
from sdm_ray.models.heads import logits
from sdm_ray.models.interface import TrunkLike, as_module

ROW_MULTIPLE = 256
"""The number of embedding rows is rounded up to a multiple of this, so that few shapes occur."""


class Layout:
    """Names and shapes of parameters, and their positions in one flat vector.

    Args:
        shapes: shape by name, in the order of the vector.
    """

    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        self.names = tuple(shapes)
        self.shapes = tuple(shapes.values())
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.numel = sum(self.sizes)

    def flatten(self, params: Params) -> Tensor:
        """The parameters as one new vector (P,), detached."""
        return torch.cat([params[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, flat: Tensor) -> Params:
        """Named views (..., *shape) of vectors (..., P); differentiable."""
        return self.named(self.pieces(flat))

    def pieces(self, flat: Tensor, *more: int) -> tuple[Tensor, ...]:
        """Split vectors (..., P + sum(more)) into the parameters and further pieces of sizes `more`."""
        return torch.split(flat, [*self.sizes, *more], dim=-1)

    def named(self, pieces: tuple[Tensor, ...]) -> Params:
        """The first pieces (..., size) of split vectors as named parameters; further pieces are ignored."""
        shaped = zip(self.names, pieces, self.shapes, strict=False)
        return {name: piece.view(*piece.shape[:-1], *shape) for name, piece, shape in shaped}

    def part(self, start: int, stop: int | None = None) -> Layout:
        """The layout of some of the parameters, by position."""
        return Layout(dict(zip(self.names[start:stop], self.shapes[start:stop], strict=True)))

    def span(self, name: str) -> tuple[int, int]:
        """Start and end of a parameter in the vector."""
        position = self.names.index(name)
        start = sum(self.sizes[:position])
        return start, start + self.sizes[position]


class Rows(NamedTuple):
    """The rows of a token embedding that an episode holds."""

    tokens: Tensor
    """(R,) token of each row, on the device; no token twice."""
    local: Tensor
    """(V,) row of each token, on the device; arbitrary for tokens without a row."""
    held: Tensor
    """(R,) `tokens` on the host."""

    @classmethod
    def of(
        cls, occurring: Tensor, *, num_fixed: int, vocab_size: int, device: torch.device, coarse: bool = False
    ) -> Rows:
        """Choose on the host which rows to hold.

        Args:
            occurring: ids of the tokens that occur, on the host; repetitions are allowed.
            num_fixed: token ids below this keep their row.
            vocab_size: V.
            device: where the episode runs.
            coarse: round the number of rows up to a power of two, so that few shapes occur.
        """
        held = np.zeros(vocab_size, dtype=bool)
        held[:num_fixed] = True
        held[occurring.numpy()] = True
        used, unused = np.flatnonzero(held), np.flatnonzero(~held)
        size = -(-len(used) // ROW_MULTIPLE) * ROW_MULTIPLE
        size = min(power_of_two(size) if coarse else size, vocab_size)
        chosen = np.concatenate([used, unused[: size - len(used)]])
        positions = np.zeros(vocab_size, dtype=np.int64)
        positions[chosen] = np.arange(size)
        tokens, local = torch.from_numpy(chosen), torch.from_numpy(positions)
        if device.type == "cuda":
            tokens, local = tokens.pin_memory(), local.pin_memory()
        return cls(tokens.to(device, non_blocking=True), local.to(device, non_blocking=True), tokens)

    def localise(self, batch: Batch) -> Batch:
        """The batch with its token ids replaced by row numbers."""
        return batch._replace(inputs=(self.local[batch.inputs[0]], *batch.inputs[1:]))


class FlatModel:
    """Features and logits as functions of flat parameter vectors, whose order is from the embeddings upwards.

    Args:
        trunk: supplies the architecture; its own parameters are never modified.
        num_rows: number of rows of a restricted token embedding; None keeps all.
    """

    def __init__(self, trunk: TrunkLike, num_rows: int | None = None) -> None:
        self._module = as_module(trunk)
        self.trunk = trunk
        self.feature_dim = trunk.feature_dim
        shapes = {name: value.shape for name, value in trunk.named_parameters()}
        if num_rows is not None:
            assert trunk.embedding_name is not None
            shapes[trunk.embedding_name] = torch.Size((num_rows, *shapes[trunk.embedding_name][1:]))
        ordered = sorted(shapes, key=trunk.depth_of)
        self.layout = Layout({name: shapes[name] for name in ordered})
        self.first_of_depth = [
            sum(trunk.depth_of(name) < depth for name in ordered) for depth in range(trunk.num_depths + 1)
        ]
        """For each depth, the position in `layout` of the first parameter at that depth or above."""
        self._restricted: dict[int, FlatModel] = {}
        self.cache: dict[object, Any] = {}
        """Objects that callers build from this model and reuse: compiled functions."""

    def initial(self) -> Tensor:
        """The trunk's own parameters as a new vector (P,)."""
        return self.layout.flatten(dict(self._module.named_parameters()))

    def features(self, flat: Tensor, batch: Batch) -> Tensor:
        """Features (..., B, D) of a batch (..., B, ·) under parameters (P,)."""
        lead = batch.labels.shape
        inputs = tuple(value.flatten(0, len(lead) - 1) for value in batch.inputs)
        return self.call(self.layout.unflatten(flat), inputs).view(*lead, -1)

    def logits(self, flat: Tensor, head: Tensor, batch: Batch) -> Tensor:
        """Scores (..., B, C) of a batch under trunk parameters (P,) and a head (C, D)."""
        return logits(self.features(flat, batch), head)

    def call(self, params: Params, inputs: tuple[Tensor, ...], dropout_seed: int | None = None) -> Tensor:
        """Features (B, D) of inputs (B, ·) under named parameters."""
        options: dict[str, Any] = {"shortcut": True} if self.trunk.has_shortcut else {}
        if dropout_seed is not None:
            options["dropout_seed"] = dropout_seed
        features: Tensor = functional_call(self._module, params, inputs, options)
        return features

    def call_tokens(
        self, params: Params, inputs: tuple[Tensor, ...], dropout_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, D) and last token states (B, L, D) of texts (B, L); only where the trunk gives token states."""
        options: dict[str, Any] = {"token_states": True}
        if dropout_seed is not None:
            options["dropout_seed"] = dropout_seed
        features, states = functional_call(self._module, params, inputs, options)
        return features, states

    def stacked(
        self, params: Params, inputs: tuple[Tensor, ...], *, shared: bool, dropout_seed: int | None = None
    ) -> Tensor:
        """Features (A, B, D) of A models at once.

        Args:
            params: named parameters; those without a leading dimension A are shared by all A models.
            inputs: each (A, B, ·), or (B, ·) if `shared`.
            shared: whether all models read the same inputs.
            dropout_seed: seed of the dropout masks; None turns dropout off.
        """
        (features,) = self._stacked(self._call, params, inputs, shared=shared, dropout_seed=dropout_seed)
        return features

    def stacked_tokens(
        self, params: Params, inputs: tuple[Tensor, ...], *, shared: bool, dropout_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `stacked`, also the last token states (A, B, L, D)."""
        features, states = self._stacked(self.call_tokens, params, inputs, shared=shared, dropout_seed=dropout_seed)
        return features, states

    def _call(self, params: Params, inputs: tuple[Tensor, ...], dropout_seed: int | None = None) -> tuple[Tensor, ...]:
        return (self.call(params, inputs, dropout_seed),)

    def _stacked(
        self,
        call: Callable[..., tuple[Tensor, ...]],
        params: Params,
        inputs: tuple[Tensor, ...],
        *,
        shared: bool,
        dropout_seed: int | None,
    ) -> tuple[Tensor, ...]:
        shapes = dict(zip(self.layout.names, self.layout.shapes, strict=True))
        stacks = {name: value.dim() > len(shapes[name]) for name, value in params.items()}
        count = next((len(params[name]) for name, stack in stacks.items() if stack), 1)
        if count == 1 or dropout_seed is not None:
            parts = [
                call(
                    {name: value[index] if stacks[name] else value for name, value in params.items()},
                    inputs if shared else tuple(value[index] for value in inputs),
                    None if dropout_seed is None else dropout_seed + index,
                )
                for index in range(count)
            ]
            return tuple(torch.stack(column) for column in zip(*parts, strict=True))
        dims = {name: 0 if stack else None for name, stack in stacks.items()}
        found: tuple[Tensor, ...] = vmap(call, in_dims=(dims, None if shared else 0))(params, inputs)
        return found

    def restricted(self, num_rows: int) -> FlatModel:
        """The same model with `num_rows` rows in its token embedding."""
        if num_rows not in self._restricted:
            self._restricted[num_rows] = FlatModel(self.trunk, num_rows)
        return self._restricted[num_rows]

    def plan_rows(self, occurring: Tensor, device: torch.device, *, coarse: bool = False) -> Rows:
        """Rows of the token embedding for the tokens that occur; arguments as in `Rows.of`."""
        assert self.trunk.embedding_name is not None
        vocab_size = self.layout.shapes[self.layout.names.index(self.trunk.embedding_name)][0]
        return Rows.of(occurring, num_fixed=self.trunk.fixed_ids, vocab_size=vocab_size, device=device, coarse=coarse)

    def compress(self, flat: Tensor, rows: Rows) -> Tensor:
        """Convert vectors (..., P) of this model to vectors (..., P') of the restricted model."""
        start, stop = self._embedding_span()
        table = self._table(flat[..., start:stop])
        chosen = table[..., rows.tokens, :].flatten(-2)
        return torch.cat([flat[..., :start], chosen, flat[..., stop:]], dim=-1)

    def expand(self, compressed: Tensor, rows: Rows) -> Tensor:
        """Convert vectors (..., P') of the restricted model to vectors (..., P) of this one; other rows are zero."""
        start, stop = self._embedding_span()
        end = start + len(rows.tokens) * self._embedding_width()
        chosen = self._table(compressed[..., start:end])
        table = compressed.new_zeros(*compressed.shape[:-1], stop - start)
        self._table(table).index_copy_(-2, rows.tokens, chosen)
        return torch.cat([compressed[..., :start], table, compressed[..., end:]], dim=-1)

    def regroup(self, compressed: Tensor, held: Rows, wanted: Rows) -> Tensor:
        """Convert vectors (..., P') from the rows `held` to the rows `wanted`.

        Rows of `wanted` that are not held become zero. Elements after the parameters are kept.
        """
        start, width = self._embedding_span()[0], self._embedding_width()
        end = start + len(held.tokens) * width
        table = self._table(compressed[..., start:end])
        if len(wanted.held) > len(held.held):
            moved = compressed.new_zeros(*table.shape[:-2], len(wanted.tokens), width)
            moved.index_copy_(-2, wanted.local[held.tokens], table)
        else:
            moved = table[..., held.local[wanted.tokens], :]
        return torch.cat([compressed[..., :start], moved.flatten(-2), compressed[..., end:]], dim=-1)

    def _embedding_span(self) -> tuple[int, int]:
        assert self.trunk.embedding_name is not None
        return self.layout.span(self.trunk.embedding_name)

    def _table(self, flat: Tensor) -> Tensor:
        """The embedding's part (..., R · D) of vectors, viewed as rows (..., R, D)."""
        return flat.view(*flat.shape[:-1], -1, self._embedding_width())

    def _embedding_width(self) -> int:
        assert self.trunk.embedding_name is not None
        return int(self.layout.shapes[self.layout.names.index(self.trunk.embedding_name)][-1])


__all__ = ["FlatModel", "Layout", "Rows", "TrunkLike"]
