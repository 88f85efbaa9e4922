"""A trunk as a pure function of one flat vector of parameters, of which an episode needs only a part.

Optimiser maths on one long vector costs a handful of kernels whatever the number of layers, which is what an outer
step of a small encoder is bound by. And of a token embedding an episode needs only the rows of tokens that occur in
it: an optimiser that treats every element by itself never reads the others, so leaving them out changes nothing.
"""

from __future__ import annotations

import math
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
    """Names and shapes of parameters, and their places in one flat vector.

    Args:
        shapes: shape by name, in the order of the vector.
    """

    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        self.names = tuple(shapes)
        self.shapes = tuple(shapes.values())
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.numel = sum(self.sizes)

    def flatten(self, params: Params) -> Tensor:
        """The parameters as one new vector (P,), without gradient history."""
        return torch.cat([params[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, flat: Tensor) -> Params:
        """Named views into vectors (..., P), leading dimensions kept; differentiable."""
        return self.named(self.pieces(flat))

    def pieces(self, flat: Tensor, *more: int) -> tuple[Tensor, ...]:
        """Vectors (..., P + more) cut into the parameters and whatever follows them, of the given sizes."""
        return torch.split(flat, [*self.sizes, *more], dim=-1)

    def named(self, pieces: tuple[Tensor, ...]) -> Params:
        """The pieces (..., size) of split vectors as named parameters; further pieces are left over."""
        shaped = zip(self.names, pieces, self.shapes, strict=False)
        return {name: piece.view(*piece.shape[:-1], *shape) for name, piece, shape in shaped}

    def part(self, start: int, stop: int | None = None) -> Layout:
        """The layout of some of the parameters, by position."""
        return Layout(dict(zip(self.names[start:stop], self.shapes[start:stop], strict=True)))

    def span(self, name: str) -> tuple[int, int]:
        """Where a parameter begins and ends in the vector."""
        position = self.names.index(name)
        start = sum(self.sizes[:position])
        return start, start + self.sizes[position]


class Rows(NamedTuple):
    """The rows of a token embedding that an episode holds."""

    tokens: Tensor
    """(R,) token of each row, on the device; no token twice."""
    local: Tensor
    """(V,) row of each token, on the device; meaningless for tokens that have none."""
    held: Tensor
    """(R,) `tokens` on the host."""

    @classmethod
    def of(
        cls, occurring: Tensor, *, num_fixed: int, vocab_size: int, device: torch.device, coarse: bool = False
    ) -> Rows:
        """Plan on the host which rows to hold.

        Args:
            occurring: host indices of the tokens that occur; repetitions are allowed.
            num_fixed: leading tokens that must keep their place.
            vocab_size: V.
            device: where the episode runs.
            coarse: round their number up to a power of two, so that few shapes occur.
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
        """A batch of texts whose token ids are positions in these rows."""
        return batch._replace(inputs=(self.local[batch.inputs[0]], *batch.inputs[1:]))


class FlatModel:
    """Features and logits as functions of flat parameter vectors, ordered from the embeddings upwards.

    Args:
        trunk: supplies the architecture; its own parameters are never written to.
        num_rows: rows of the token embedding, where it is a restricted one.
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
        """Position of the first parameter at or above each depth."""
        self._restricted: dict[int, FlatModel] = {}
        self.cache: dict[object, Any] = {}
        """What others derive from this model and want to keep: compiled functions."""

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

    def stacked(
        self, params: Params, inputs: tuple[Tensor, ...], *, shared: bool, dropout_seed: int | None = None
    ) -> Tensor:
        """Features (A, B, D) of A models at once.

        Args:
            params: named parameters, each with a leading A; those without it serve all A.
            inputs: each (A, B, ·), or (B, ·) where all models read the same.
            shared: whether they do.
            dropout_seed: seed of the dropout masks; None is without dropout.
        """
        shapes = dict(zip(self.layout.names, self.layout.shapes, strict=True))
        stacks = {name: value.dim() > len(shapes[name]) for name, value in params.items()}
        count = next((len(params[name]) for name, stack in stacks.items() if stack), 1)
        if count == 1 or dropout_seed is not None:
            return torch.stack(
                [
                    self.call(
                        {name: value[index] if stacks[name] else value for name, value in params.items()},
                        inputs if shared else tuple(value[index] for value in inputs),
                        None if dropout_seed is None else dropout_seed + index,
                    )
                    for index in range(count)
                ]
            )
        dims = {name: 0 if stack else None for name, stack in stacks.items()}
        features: Tensor = vmap(self.call, in_dims=(dims, None if shared else 0))(params, inputs)
        return features

    def restricted(self, num_rows: int) -> FlatModel:
        """The same model with that many rows of the token embedding."""
        if num_rows not in self._restricted:
            self._restricted[num_rows] = FlatModel(self.trunk, num_rows)
        return self._restricted[num_rows]

    def plan_rows(self, occurring: Tensor, device: torch.device, *, coarse: bool = False) -> Rows:
        """Rows of the token embedding for the tokens that occur; arguments as of `Rows.of`."""
        assert self.trunk.embedding_name is not None
        vocab_size = self.layout.shapes[self.layout.names.index(self.trunk.embedding_name)][0]
        return Rows.of(occurring, num_fixed=self.trunk.fixed_ids, vocab_size=vocab_size, device=device, coarse=coarse)

    def compress(self, flat: Tensor, rows: Rows) -> Tensor:
        """The vectors (..., P) of this model as those (..., P') of the restricted one."""
        start, stop = self._embedding_span()
        table = self._table(flat[..., start:stop])
        chosen = table[..., rows.tokens, :].flatten(-2)
        return torch.cat([flat[..., :start], chosen, flat[..., stop:]], dim=-1)

    def expand(self, compressed: Tensor, rows: Rows) -> Tensor:
        """The vectors (..., P) of this model from those of the restricted one; other rows are zero."""
        start, stop = self._embedding_span()
        end = start + len(rows.tokens) * self._embedding_width()
        chosen = self._table(compressed[..., start:end])
        table = compressed.new_zeros(*compressed.shape[:-1], stop - start)
        self._table(table).index_copy_(-2, rows.tokens, chosen)
        return torch.cat([compressed[..., :start], table, compressed[..., end:]], dim=-1)

    def regroup(self, compressed: Tensor, held: Rows, wanted: Rows) -> Tensor:
        """Vectors (..., P') in the layout of some rows in that of others.

        Rows of `wanted` that are not held become zero; what else follows the parameters in the vector is kept.
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
        """Rows of the embedding (..., R, D) as a view of a part (..., R · D) of a vector."""
        return flat.view(*flat.shape[:-1], -1, self._embedding_width())

    def _embedding_width(self) -> int:
        assert self.trunk.embedding_name is not None
        return int(self.layout.shapes[self.layout.names.index(self.trunk.embedding_name)][-1])


__all__ = ["FlatModel", "Layout", "Rows", "TrunkLike"]
