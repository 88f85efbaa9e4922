"""A world small enough to attack in a second: token sequences, planted labels, and a trunk of two layers."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from sdm_ray.attack.protocol import AttackReport, attack_model
from sdm_ray.config import AttackSettings
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Batch, Params, Split, Task
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.trunk import params_digest

T = TypeVar("T")
VOCABULARY, WIDTH, CUE = 40, 9, 30
SIZES = {Split.META_TRAIN: 40, Split.ATTACKER_TRAIN: 200, Split.ATTACKER_VAL: 120, Split.TEST: 160}


class FakeData:
    """An `AttackDataset`. Where `informative`, the second token of a text gives its harmful label away."""

    def __init__(self, *, informative: bool = True, num_classes: int = 2, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        total = sum(SIZES.values())
        self.device, self.digest = torch.device("cpu"), f"fake-{informative}-{num_classes}-{seed}"
        self.num = num_classes
        self.labels = {task: torch.randint(num_classes, (total,), generator=generator) for task in Task}
        self.lengths = torch.randint(4, WIDTH + 1, (total,), generator=generator)
        self.ids = torch.randint(1, CUE, (total, WIDTH), generator=generator)
        if informative:
            self.ids[:, 1] = CUE + self.labels[Task.HARMFUL]
        self.ids[torch.arange(WIDTH) >= self.lengths[:, None]] = 0
        parts = torch.randperm(total, generator=generator).split(list(SIZES.values()))
        self.split_indices = {split: part.sort().values for split, part in zip(SIZES, parts, strict=True)}
        self.asked: list[Tensor] = []
        """Indices of every batch that was asked for."""

    def num_classes(self, task: Task) -> int:
        return self.num

    def label_names(self, task: Task) -> tuple[str, ...]:
        return tuple(f"{task}-{label}" for label in range(self.num))

    def indices(self, split: Split) -> Tensor:
        assert split != Split.META_TRAIN, "the attack has no business with meta-training examples"
        return self.split_indices[split].clone()

    def labels_host(self, task: Task) -> Tensor:
        return self.labels[task].clone()

    def lengths_host(self) -> Tensor:
        return self.lengths.clone()

    def to(self, device: torch.device | str) -> Self:
        return self

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        self.asked.append(indices)
        length = pad_to or WIDTH
        assert length >= int(self.lengths[indices].max())
        ids = self.ids[indices][..., :length]
        return Batch((ids, (ids != 0).long()), self.labels[task][indices])


class TinyTrunk(nn.Module):
    """Mean of embeddings, then a tanh layer: all of it one depth, with the embedding never restricted."""

    embedding_name: str | None = None
    feature_dim, fixed_ids, num_depths = 8, 0, 1
    has_shortcut = has_dropout = has_packing = False

    def __init__(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator, dtype=dtype))
        self.weight = nn.Parameter(torch.randn(8, 8, generator=generator, dtype=dtype) / 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).to(self.embedding.dtype)
        mean = (self.embedding[input_ids] * mask).sum(-2) / mask.sum(-2)
        return torch.tanh(mean @ self.weight.T)

    def depth_of(self, name: str) -> int:
        return 0

    def digest(self) -> str:
        return params_digest(dict(self.named_parameters()))


def params_of(trunk: TrunkLike) -> Params:
    return {name: value.detach() for name, value in trunk.named_parameters()}


def quick(**changes: Any) -> AttackSettings:
    """Settings of an attack that takes a fraction of a second."""
    values: dict[str, Any] = {
        "families": ("fine_tune",),
        "num_examples": (20, 40),
        "num_search_trials": 8,
        "num_rerun_seeds": 3,
        "learning_rate": {"low": 1e-3, "high": 3e-2},
        "num_steps_min": 10,
        "num_steps_max": 40,
        "batch_sizes": (8, 16),
    }
    return AttackSettings.model_validate(values | changes)


def drain(generator: Generator[Progress, None, T]) -> T:
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            result: T = stop.value
            return result


def attack(data: FakeData, settings: AttackSettings | None = None, *, seed: int = 0, **options: Any) -> AttackReport:
    trunk = TinyTrunk(seed=seed)
    return drain(attack_model(trunk, params_of(trunk), data, settings or quick(), **options))
