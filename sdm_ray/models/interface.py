"""The protocol of a trunk: a module that maps a batch of inputs to one feature vector an example.

Text is not assumed. A module whose `forward` takes vectors (B, I) or images (B, C, H, W) fits as it stands once it has
the members below (`models/mlp.py` is one); only what restricts a token embedding needs token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import nn


class TrunkLike(Protocol):
    """An encoder as a pure function: `torch.func.functional_call` of the module with other parameters.

    `forward` is deterministic (but for `dropout_seed`), reads no global random state, has a second derivative, and
    works under `vmap` over stacked parameters.
    """

    @property
    def forward(self) -> Callable[..., Any]:
        """Features (B, D) of a batch's inputs, each (B, ·), as positional arguments.

        Keyword arguments: `shortcut=True` where `has_shortcut`, `dropout_seed: int | None` where `has_dropout`,
        `places: Tensor | None` where `has_packing`.
        """
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights that the features depend on, by name; none is shared under two names."""
        ...

    @property
    def feature_dim(self) -> int:
        """D."""
        ...

    @property
    def embedding_name(self) -> str | None:
        """Name of the token embedding (V, E), if `forward` does nothing but look up its rows by the ids in its first
        input, else None. Training may then hold just the rows that occur, with ids renumbered to match."""
        ...

    @property
    def fixed_ids(self) -> int:
        """Leading token ids 0..n-1 that a renumbering must leave as they are (all n rows are then kept)."""
        ...

    @property
    def num_depths(self) -> int:
        """Number of depths; every one of 0..num_depths-1 holds a parameter."""
        ...

    def depth_of(self, name: str) -> int:
        """Depth of a parameter; activations below a depth do not depend on parameters at or above it."""
        ...

    @property
    def has_shortcut(self) -> bool:
        """Whether `forward` knows `shortcut=True`: the same features with fewer operations."""
        ...

    @property
    def has_dropout(self) -> bool:
        """Whether `forward` knows `dropout_seed`: masks drawn from a seed, the same ones for the same seed."""
        ...

    @property
    def has_packing(self) -> bool:
        """Whether `forward` knows `places`: where the tokens lie, to compute next to nothing for padding."""
        ...

    def digest(self) -> str:
        """SHA-256 (hex) of the weights and of what else the features depend on."""
        ...


def as_module(trunk: TrunkLike) -> nn.Module:
    """The trunk as an `nn.Module`, for `torch.func.functional_call`."""
    assert isinstance(trunk, nn.Module), type(trunk)
    return trunk
