"""Sizes of stacks: as many fine-tunes as fit into memory and, on a CPU, into its caches."""

from __future__ import annotations

import torch

from sdm_ray.attack.engine.optim import OPTIMIZERS
from sdm_ray.attack.engine.stack import by_device, plan_device
from sdm_ray.attack.families.base import Attacker
from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.trunk import Trunk

LARGEST_STACK = {"cpu": 32, "cuda": 128}
"""Most attackers in a stack, by device type."""
CPU_STACK_TOKENS = 6144
"""Most tokens per step, over all attackers of a stack, on a CPU. More do not fit into the caches and are not faster."""
CPU_STACK_BYTES = 2 * 1024**3
"""Most memory of a stack on a CPU."""
CUDA_FREE_SHARE = 0.5
"""Largest fraction of the free GPU memory for a stack."""


class StackSizes:
    """Sizes of the stacks of one model's attackers.

    Args:
        trunk: the architecture.
        params: released weights.
        embedding: name of the token embedding; None if there is none.
        longest: number of tokens of the longest text.
        width: size of the pooled features.
    """

    def __init__(self, trunk: TrunkLike, params: Params, embedding: str | None, *, longest: int, width: int) -> None:
        self._trunk, self._params, self._embedding = trunk, params, embedding
        self._longest, self._width = longest, width
        self._device = plan_device(params)
        self._dtype = next(iter(params.values())).dtype
        self._largest = by_device(LARGEST_STACK, self._device)

    def of(self, attacker: Attacker) -> int:
        """Size of a stack of attackers like this one."""
        if attacker.frozen:
            return LARGEST_STACK["cuda"]
        fitting = min(self._largest, self._fitting(attacker))
        if self._device.type != "cpu":
            return fitting
        return max(1, min(fitting, CPU_STACK_TOKENS // (attacker.batch_size * self._longest)))

    def shrink_to(self, size: int) -> None:
        """Limit the size of later stacks, after a larger one ran out of memory."""
        self._largest = min(self._largest, size)

    def _fitting(self, attacker: Attacker) -> int:
        """Number of attackers that fit into memory, by a rough estimate of weights and activations."""
        batch, length = attacker.batch_size, self._longest
        trained = sum(value.numel() for name, value in self._params.items() if name != self._embedding)
        if self._embedding is not None:
            rows = len(self._params[self._embedding])
            if OPTIMIZERS[attacker.optimizer].leaves_zero_gradients:
                rows = min(rows, attacker.num_examples * length)
            trained += rows * self._width
        element = torch.finfo(self._dtype).bits // 8
        # Weight, gradient, two moments; activations after Korthikanti et al. (arXiv 2205.05198), eager attention.
        needed = element * (4 * trained + batch * length * self._activations_per_token(length))
        if self._device.type == "cuda":
            budget = CUDA_FREE_SHARE * torch.cuda.mem_get_info(self._device)[0]
        else:
            budget = CPU_STACK_BYTES
        return max(1, int(budget // needed))

    def _activations_per_token(self, length: int) -> int:
        if not isinstance(self._trunk, Trunk):
            return 0
        config = self._trunk.hf_model.config
        width, heads = int(config.hidden_size), int(config.num_attention_heads)
        return int(config.num_hidden_layers) * (20 * width + 3 * heads * length)
