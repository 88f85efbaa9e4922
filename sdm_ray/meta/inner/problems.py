"""What an adversary trains: the whole model, its upper part, low-rank factors, or the head alone.

Every kind has the same interface: variables `x`, which the adversary's optimiser updates, and tensors `base`, which
stay fixed in the loop. Both are functions of the trunk and the head that the adversary starts from. Meta-gradients go
back to `x_0` and `base`, and from there to the trunk.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdm_ray.core.types import Batch, Params
from sdm_ray.meta.inner.flat_model import FlatModel, Layout
from sdm_ray.meta.inner.head_reader import Encoded, HeadReader, Outputs
from sdm_ray.meta.objectives import example_losses
from sdm_ray.models.heads import logits

LORA_ALPHA = 16.0
"""Low-rank updates are scaled by this over the rank (Hu et al., arXiv 2106.09685)."""

SEEDS_OF_A_STEP = 1009
"""Distance between the dropout seeds of two steps; adversaries of one batch take the seeds in between."""

Base = tuple[Tensor, ...]


class EvaluationBatch(NamedTuple):
    """An outer batch that adapted models are evaluated on."""

    batch: Batch
    """(B, ·), the same at every evaluated step."""
    head: Tensor | None
    """(C, D) a head that does not adapt and reads the pooled features; None takes the adversary's own."""


class Data(NamedTuple):
    """The texts (or vectors) of an episode."""

    inner: tuple[Batch, ...]
    """K batches (A, B, ·) that the adversaries train on, each as wide as its own texts."""
    evaluation: tuple[EvaluationBatch, ...]
    """Batches that the adapted models are evaluated on."""
    seed: int = 0
    """Seed of the episode's draws: low-rank factors, parameter noise, dropout masks."""
    dropout: bool = False
    """Whether inner steps have dropout masks, each its own."""

    def seed_at(self, step: int) -> int | None:
        """Seed of a step's dropout masks."""
        return self.seed + SEEDS_OF_A_STEP * step if self.dropout else None


class Problem(Protocol):
    """An adversary's variables, and the losses as functions of them."""

    def begin(self, trunk: Tensor, head: Tensor, data: Data) -> tuple[Tensor, Base]:
        """Variables (A, N) and base at the start; differentiable functions of trunk (A or 1, P) and head (A, C, D)."""
        ...

    def inner_loss(self, base: Base, variables: Tensor, data: Data, step: int) -> Tensor:
        """(A,) losses on the inner batch of a step."""
        ...

    def outputs(self, base: Base, variables: Tensor, data: Data) -> tuple[Outputs, ...]:
        """Outputs on every evaluation batch."""
        ...

    def head_of(self, variables: Tensor) -> Tensor:
        """(A, C, D) heads."""
        ...


class TrunkProblem(ABC):
    """Base class of the kinds that train (part of) the trunk: parameters from base and variables."""

    def __init__(self, model: FlatModel, reader: HeadReader) -> None:
        self._model, self._reader, self._head_shape = model, reader, reader.head_shape
        self._head_size = math.prod(self._head_shape)
        self.feature_dim, self.num_classes = model.feature_dim, reader.num_classes

    @abstractmethod
    def params(self, base: Base, variables: Tensor) -> tuple[Params, Tensor]:
        """Named parameters and heads (A, C, D)."""

    def inner_loss(self, base: Base, variables: Tensor, data: Data, step: int) -> Tensor:
        """(A,) losses on the inner batch of a step."""
        return self.batch_loss(base, variables, data.inner[step], data.seed_at(step))

    def batch_loss(self, base: Base, variables: Tensor, batch: Batch, dropout_seed: int | None = None) -> Tensor:
        """(A,) losses on a batch (A, B, ·)."""
        params, head = self.params(base, variables)
        encoded = self._reader.encode(params, batch.inputs, shared=False, dropout_seed=dropout_seed)
        return example_losses(self._reader.read(encoded, head, batch.inputs).logits, batch.labels).mean(-1)

    def outputs(self, base: Base, variables: Tensor, data: Data) -> tuple[Outputs, ...]:
        """Outputs on every evaluation batch."""
        return tuple(self.outputs_on(base, variables, one.batch.inputs, one.head) for one in data.evaluation)

    def outputs_on(self, base: Base, variables: Tensor, inputs: tuple[Tensor, ...], head: Tensor | None) -> Outputs:
        """Outputs on inputs (B, ·) with the adversaries\' own heads, or with a fixed one (C, D)."""
        params, own = self.params(base, variables)
        if head is not None:
            features = self._model.stacked(params, inputs, shared=True)
            return Outputs(features, logits(features, head))
        return self._reader.read(self._reader.encode(params, inputs, shared=True), own, inputs)

    def head_of(self, variables: Tensor) -> Tensor:
        """(A, C, D) heads: the last variables."""
        return variables[:, -self._head_size :].view(-1, *self._head_shape)


class UpperProblem(TrunkProblem):
    """The head and the trunk from a depth upwards are trained (depth 0: all of it).

    Args:
        model: the trunk as a function.
        reader: reads the heads.
        depth: blocks below it are frozen.
    """

    def __init__(self, model: FlatModel, reader: HeadReader, depth: int) -> None:
        super().__init__(model, reader)
        position = model.first_of_depth[depth]
        self._lower, self._upper = model.layout.part(0, position), model.layout.part(position)

    def begin(self, trunk: Tensor, head: Tensor, data: Data) -> tuple[Tensor, Base]:
        """The upper part and the head are the variables, the lower part is the base."""
        lower, upper = trunk[:, : self._lower.numel], trunk[:, self._lower.numel :]
        variables = torch.cat([upper.expand(len(head), -1), head.flatten(1)], dim=1)
        return variables, (lower.expand(len(head), -1),) if self._lower.numel else ()

    def params(self, base: Base, variables: Tensor) -> tuple[Params, Tensor]:
        """Named parameters and heads (A, C, D)."""
        *pieces, head = self._upper.pieces(variables, self._head_size)
        below = self._lower.unflatten(base[0]) if base else {}
        return below | self._upper.named(tuple(pieces)), head.view(-1, *self._head_shape)


class LoraProblem(TrunkProblem):
    """Low-rank updates of the weight matrices above the embeddings, and the head (Hu et al., arXiv 2106.09685).

    Args:
        model: the trunk as a function.
        reader: reads the heads.
        rank: of the factors. At the start one is normal and the other zero, so that the model starts unchanged.
    """

    def __init__(self, model: FlatModel, reader: HeadReader, rank: int) -> None:
        super().__init__(model, reader)
        self._scale = LORA_ALPHA / rank
        shapes = dict(zip(model.layout.names, model.layout.shapes, strict=True))
        lowest = 1 if model.trunk.num_depths > 1 else 0
        self._targets = [
            name for name, shape in shapes.items() if len(shape) == 2 and model.trunk.depth_of(name) >= lowest
        ]
        self._down = Layout({name: torch.Size((rank, shapes[name][1])) for name in self._targets})
        self._up = Layout({name: torch.Size((shapes[name][0], rank)) for name in self._targets})

    def begin(self, trunk: Tensor, head: Tensor, data: Data) -> tuple[Tensor, Base]:
        """Factors and head are the variables, the whole trunk is the base."""
        generator = torch.Generator().manual_seed(data.seed)
        widths = [shape[1] for shape in self._down.shapes]
        pieces = [
            torch.randn(len(head), size, generator=generator) / math.sqrt(width)
            for size, width in zip(self._down.sizes, widths, strict=True)
        ]
        down = torch.cat(pieces, dim=1).to(trunk, non_blocking=True)
        up = trunk.new_zeros(len(head), self._up.numel)
        return torch.cat([down, up, head.flatten(1)], dim=1), (trunk.expand(len(head), -1),)

    def params(self, base: Base, variables: Tensor) -> tuple[Params, Tensor]:
        """Named parameters with their updates, and heads (A, C, D)."""
        *pieces, head = self._down.pieces(variables, *self._up.sizes, self._head_size)
        count = len(self._targets)
        down, up = self._down.named(tuple(pieces[:count])), self._up.named(tuple(pieces[count:]))
        params = self._model.layout.unflatten(base[0])
        updates = {name: params[name] + self._scale * (up[name] @ down[name]) for name in self._targets}
        return params | updates, head.view(-1, *self._head_shape)


class HeadProblem:
    """The head alone is trained: the trunk is frozen, so every text passes it once and the loop runs on features.

    Args:
        model: the trunk as a function.
        reader: reads the heads.
    """

    def __init__(self, model: FlatModel, reader: HeadReader) -> None:
        self._model, self._reader, self._head_shape = model, reader, reader.head_shape

    def begin(self, trunk: Tensor, head: Tensor, data: Data) -> tuple[Tensor, Base]:
        """The head is the variable; features (A, B, D) of every inner batch and evaluation batch are the base, each
        followed by its token states (A, B, L, D) if the head reads them."""
        params, count = self._model.layout.unflatten(trunk), len(head)
        if len(trunk) == 1:
            params = {name: value[0] for name, value in params.items()}
        inner = [self._inner(params, batch, data.seed_at(step)) for step, batch in enumerate(data.inner)]
        evaluation = [
            self._reader.encode(params, one.batch.inputs, shared=True).each(
                lambda value: value.expand(count, *value.shape[1:])
            )
            for one in data.evaluation
        ]
        return head.flatten(1), tuple(value for one in (*inner, *evaluation) for value in one if value is not None)

    def inner_loss(self, base: Base, variables: Tensor, data: Data, step: int) -> Tensor:
        """(A,) losses on the features of a step's inner batch."""
        batch = data.inner[step]
        outputs = self._reader.read(self._encoded(base, step), self.head_of(variables), batch.inputs)
        return example_losses(outputs.logits, batch.labels).mean(-1)

    def outputs(self, base: Base, variables: Tensor, data: Data) -> tuple[Outputs, ...]:
        """Outputs on every evaluation batch."""
        head, found = self.head_of(variables), []
        for position, one in enumerate(data.evaluation, len(data.inner)):
            encoded = self._encoded(base, position)
            if one.head is None:
                found.append(self._reader.read(encoded, head, one.batch.inputs))
            else:
                found.append(Outputs(encoded.features, logits(encoded.features, one.head)))
        return tuple(found)

    def head_of(self, variables: Tensor) -> Tensor:
        """(A, C, D) heads."""
        return variables.view(-1, *self._head_shape)

    def _encoded(self, base: Base, position: int) -> Encoded:
        """The batch at a position, inner ones first."""
        if self._reader.reads_tokens:
            return Encoded(base[2 * position], base[2 * position + 1])
        return Encoded(base[position], None)

    def _inner(self, params: Params, batch: Batch, dropout_seed: int | None) -> Encoded:
        stacked = params[self._model.layout.names[0]].dim() > len(self._model.layout.shapes[0])
        lead = batch.labels.shape
        inputs = batch.inputs if stacked else tuple(value.flatten(0, 1) for value in batch.inputs)
        encoded = self._reader.encode(params, inputs, shared=not stacked, dropout_seed=dropout_seed)
        return encoded.each(lambda value: value.view(*lead, *value.shape[2:]))
