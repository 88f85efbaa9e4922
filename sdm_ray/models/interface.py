"""Protocol of a trunk: a module that maps a batch of inputs to one feature vector per example.

Inputs need not be text. A module whose `forward` takes vectors (B, I) or images (B, C, H, W) can be used directly if it
has the members below (`models/mlp.py` is an example); token ids are only needed for restricting a token embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import nn


class TrunkLike(Protocol):
    """An encoder as a pure function: `torch.func.functional_call` of the module with given parameters.

    `forward` is deterministic (except for `dropout_seed`), does not use global random state, is twice differentiable,
    and works under `vmap` over stacked parameters.
    """

    @property
    def forward(self) -> Callable[..., Any]:
        """Features (B, D) of a batch's inputs, each (B, ·), given as positional arguments.

        Keyword arguments: `shortcut=True` if `has_shortcut`, `dropout_seed: int | None` if `has_dropout`, `places:
        Tensor | None` if `has_packing`. A trunk of texts whose `forward` has the keyword argument `token_states` also
        returns (B, L, D) the last states of the tokens if it is true; its second input is then the mask (B, L).
        """
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Weights that the features depend on, by name; none is shared under two names."""
        ...

    @property
    def feature_dim(self) -> int:
        """D."""
        ...

    @property
    def embedding_name(self) -> str | None:
        """Name of the token embedding (V, E), if `forward` uses the ids in its first input only to look up its rows.

        Otherwise None. Training may then hold only the rows that occur, with renumbered ids.
        """
        ...

    @property
    def fixed_ids(self) -> int:
        """Number of leading token ids 0..n-1 that a renumbering must keep (all n rows are then kept)."""
        ...

    @property
    def num_depths(self) -> int:
        """Number of depths; each of 0..num_depths-1 has a parameter."""
        ...

    def depth_of(self, name: str) -> int:
        """Depth of a parameter; activations below a depth do not depend on parameters at or above it."""
        ...

    @property
    def has_shortcut(self) -> bool:
        """Whether `forward` supports `shortcut=True`: the same features with fewer operations."""
        ...

    @property
    def has_dropout(self) -> bool:
        """Whether `forward` supports `dropout_seed`: dropout masks that are a function of the seed."""
        ...

    @property
    def has_packing(self) -> bool:
        """Whether `forward` supports `places`: token positions, with which padding costs almost nothing."""
        ...

    def digest(self) -> str:
        """SHA-256 (hex) of the weights and everything else that the features depend on."""
        ...


def gives_token_states(trunk: TrunkLike) -> bool:
    """Whether `forward` can also return the last states of the tokens."""
    return "token_states" in inspect.signature(trunk.forward).parameters


def as_module(trunk: TrunkLike) -> nn.Module:
    """The trunk as an `nn.Module`, for `torch.func.functional_call`."""
    assert isinstance(trunk, nn.Module), type(trunk)
    return trunk
