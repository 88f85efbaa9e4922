"""Trunk for vectors: the network of the paper's regression (arXiv 2211.14946), a stack of linear layers with ReLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sdm_ray.models.trunk import params_digest


class VectorMlp(nn.Module):
    """A `TrunkLike` for vectors: `forward` maps x (B, I) to features (B, D).

    Every layer has its own depth. An image encoder differs only in `forward` if it outputs one vector per image:
    convolutions, a mean over positions, and the same members.

    Args:
        input_dim: I.
        width: D of every layer.
        num_layers: number of linear layers, each followed by ReLU.
        seed: seed of the weights, initialised as in `nn.Linear`.

    Raises:
        ValueError: if a size is below 1.
    """

    embedding_name: str | None = None
    fixed_ids = 0
    has_shortcut = False
    has_dropout = False
    has_packing = False

    def __init__(self, input_dim: int, width: int, num_layers: int, seed: int) -> None:
        super().__init__()
        for name, value in {"input_dim": input_dim, "width": width, "num_layers": num_layers}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        generator = torch.Generator().manual_seed(seed)
        self.feature_dim, self.num_depths = width, num_layers
        self.layers = nn.ModuleList(
            _linear(input_dim if index == 0 else width, width, generator) for index in range(num_layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, D) of vectors (B, I); the mask is ignored."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x

    def depth_of(self, name: str) -> int:
        """Index of a parameter's layer."""
        return int(name.split(".")[1])

    def digest(self) -> str:
        """SHA-256 (hex) of the weights."""
        return params_digest(dict(self.named_parameters()))


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(fan_in)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
