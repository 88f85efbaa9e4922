"""Texts without their padding: the tokens of a batch as one row of vectors, and back.

Per-token work (projections, normalisation, activation) is then done for real tokens only; attention still sees padded
texts. `places` (T,) says where the tokens of a batch (B, L) lie in it, row by row; places beyond the tokens, so that
several batches may share one T, are B * L. The two functions are each other's transpose, so both have derivatives of
every order, and both work under `vmap`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def token_places(attention_mask: Tensor, count: int) -> Tensor:
    """(..., T) places of the tokens of each batch, in order; B * L beyond them. Does not wait for the device.

    Args:
        attention_mask: (..., B, L), 1 on tokens.
        count: T, no less than the tokens of any batch.
    """
    mask = attention_mask.flatten(-2).bool()
    total = mask.shape[-1]
    # Padding is written to a place past the end, which is cut off.
    rank = torch.where(mask, mask.long().cumsum(-1) - 1, count)
    places = mask.new_full((*mask.shape[:-1], count + 1), total, dtype=torch.long)
    places.scatter_(-1, rank, torch.arange(total, device=mask.device).expand(mask.shape))
    return places[..., :count]


def pack(padded: Tensor, places: Tensor) -> Tensor:
    """(..., T, D) vectors at `places` (..., T) of (..., B * L, D); zeros beyond the tokens."""
    result: Tensor = _Pack.apply(padded, places)  # type: ignore[no-untyped-call]
    return result


def unpack(packed: Tensor, places: Tensor, total: int) -> Tensor:
    """(..., B * L, D) with vectors (..., T, D) at their `places` (..., T), zeros on padding; `total` is B * L."""
    result: Tensor = _Unpack.apply(packed, places, total)  # type: ignore[no-untyped-call]
    return result


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(padded: Tensor, places: Tensor) -> Tensor:
        total, width = padded.shape[-2:]
        with_zeros = torch.cat([padded.reshape(-1, width), padded.new_zeros(1, width)])
        return with_zeros.index_select(0, _flat(places, total)).view(*places.shape, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        padded, places = inputs
        ctx.total = padded.shape[-2]
        ctx.save_for_backward(places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return unpack(grad, places, ctx.total), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], padded: Tensor, places: Tensor) -> tuple[Tensor, int]:
        padded, places = _stacked(info.batch_size, in_dims, padded, places)
        return pack(padded, places), 0


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(packed: Tensor, places: Tensor, total: int) -> Tensor:
        *stack, _, width = packed.shape
        result = packed.new_zeros(math.prod(stack) * total + 1, width)
        result.index_copy_(0, _flat(places, total), packed.reshape(-1, width))
        return result[:-1].view(*stack, total, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return pack(grad, places), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], packed: Tensor, places: Tensor, total: int
    ) -> tuple[Tensor, int]:
        packed, places = _stacked(info.batch_size, in_dims, packed, places)
        return unpack(packed, places, total), 0


def _stacked(size: int, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Tensors with the axis of `vmap` in front, spread along it where they have none."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=False)
    ]


def _flat(places: Tensor, total: int) -> Tensor:
    """Places (..., T) in stacked batches of `total` as places in all of them; past the end beyond the tokens."""
    rows = places.reshape(-1, places.shape[-1])
    offsets = torch.arange(0, len(rows) * total, total, device=places.device)[:, None]
    return torch.where(rows < total, rows + offsets, len(rows) * total).flatten()
