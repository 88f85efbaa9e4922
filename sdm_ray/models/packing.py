"""Texts without padding: pack the tokens of a batch into one row of vectors, and unpack them.

Per-token work (projections, normalisation, activation) is then only done for real tokens; attention still uses padded
texts. `places` (T,) are the positions of the tokens in a batch (B, L), row by row, padded with B * L, so that several
batches can share one T. The two functions are each other's transpose, so both have derivatives of every order, and both
work under `vmap`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def token_places(attention_mask: Tensor, count: int) -> Tensor:
    """(..., T) positions of the tokens of each batch, in order, then B * L. Does not synchronise with the device.

    Args:
        attention_mask: (..., B, L), 1 on tokens.
        count: T, at least the number of tokens of any batch.
    """
    mask = attention_mask.flatten(-2).bool()
    total = mask.shape[-1]
    # Padding is written past the end, which is cut off.
    rank = torch.where(mask, mask.long().cumsum(-1) - 1, count)
    places = mask.new_full((*mask.shape[:-1], count + 1), total, dtype=torch.long)
    places.scatter_(-1, rank, torch.arange(total, device=mask.device).expand(mask.shape))
    return places[..., :count]


def pack(padded: Tensor, places: Tensor) -> Tensor:
    """(..., T, D) vectors at `places` (..., T) of (..., B * L, D); zeros after the last token."""
    result: Tensor = _Pack.apply(padded, places)  # type: ignore[no-untyped-call]
    return result


def unpack(packed: Tensor, places: Tensor, total: int) -> Tensor:
    """(..., B * L, D) with vectors (..., T, D) at their `places` (..., T), zeros at padding; `total` is B * L."""
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
    """Tensors with the `vmap` axis in front, expanded along it if they lack it."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=False)
    ]


def _flat(places: Tensor, total: int) -> Tensor:
    """Convert places (..., T) within stacked batches of `total` to places in all of them; past the end for padding."""
    rows = places.reshape(-1, places.shape[-1])
    offsets = torch.arange(0, len(rows) * total, total, device=places.device)[:, None]
    return torch.where(rows < total, rows + offsets, len(rows) * total).flatten()
