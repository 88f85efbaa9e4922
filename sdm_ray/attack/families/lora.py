"""LoRA on every linear layer of a trunk, with the package peft (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from sdm_ray.core.types import Params
from sdm_ray.models.trunk import Trunk

ADAPTER, ALPHA = "attack", 16
"""Name of the adapter; updates are scaled by alpha over the rank."""


class LoraTrunk:
    """A copy of a trunk with low-rank factors.

    Args:
        trunk: a trunk around a transformers model; it is not modified.
        rank: rank of the factors.
    """

    def __init__(self, trunk: Trunk, rank: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.module = copy.deepcopy(trunk)
        targets = linear_layers(self.module.hf_model)
        config = LoraConfig(r=rank, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, bias="none")
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(config, self.module.hf_model, adapter_name=ADAPTER)
        self.module.train(False)
        shapes = {name: value.shape for name, value in self.module.named_parameters()}
        self._shapes = {name: shape for name, shape in shapes.items() if ".lora_" in name}
        wrapped = {name.replace(".base_layer.", "."): name for name in shapes if ".base_layer." in name}
        self._names = {name: wrapped.get(name, name) for name, _ in trunk.named_parameters()}

    def shared(self, params: Params) -> Params:
        """The trunk's parameters under their names in the module with factors."""
        return {self._names[name]: value for name, value in params.items()}

    def factors(self, generators: list[torch.Generator], like: Tensor) -> Params:
        """(S, ...) initial factors: in each pair A is uniform, as in peft, and B is zero.

        Args:
            generators: S CPU generators, one per attacker.
            like: a tensor of the wanted dtype and device.
        """
        drawn = [self._draw(generator) for generator in generators]
        return {name: torch.stack([values[name] for values in drawn]).to(like) for name in self._shapes}

    def _draw(self, generator: torch.Generator) -> Params:
        values = {}
        for name, shape in self._shapes.items():
            if ".lora_A." in name:
                bound = 1 / math.sqrt(shape[1])
                values[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
            else:
                values[name] = torch.zeros(shape)
        return values


def linear_layers(model: nn.Module) -> list[str]:
    """Names of a model's linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
