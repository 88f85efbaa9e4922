"""Small trunks, worlds and episodes in float64, on which meta-training is checked by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import LongTensor, Tensor, nn

from sdm_ray.config import TrainSettings
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Batch, Split, Task
from sdm_ray.data.interface import TrainingDataset
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.episode import Episode, Start
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.problems import Data, EvaluationBatch
from sdm_ray.meta.trainer import Trainer, TrainOutcome
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.trunk import params_digest

VOCABULARY_SIZE = 40


class MlpTrunk(nn.Module):
    """Mean of token embeddings, then one tanh layer; `knows_names` gives one direction to the gender of names."""

    embedding_name: str | None = "embedding"
    fixed_ids = 0
    num_depths = 2
    has_shortcut = False
    has_dropout = False
    has_packing = False

    def __init__(
        self, width: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64, *, knows_names: bool = False
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.feature_dim = width
        self.embedding = nn.Parameter(torch.randn(VOCABULARY_SIZE, width, generator=generator, dtype=dtype))
        self.weight = nn.Parameter(torch.randn(width, width, generator=generator, dtype=dtype) / width**0.5)
        if knows_names:
            with torch.no_grad():
                self.embedding[20::2, 0], self.embedding[21::2, 0] = 3.0, -3.0

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *, token_states: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        mask = attention_mask.to(self.embedding.dtype).unsqueeze(-1)
        embedded = nn.functional.embedding(input_ids, self.embedding)
        features = torch.tanh((embedded * mask).sum(-2) / mask.sum(-2) @ self.weight)
        return (features, torch.tanh(embedded @ self.weight)) if token_states else features

    def depth_of(self, name: str) -> int:
        return ["embedding", "weight"].index(name)

    def digest(self) -> str:
        return params_digest(dict(self.named_parameters()))


def bert_trunk(folder: Path) -> Any:
    """The tiny BERT of `conftest` in float64."""
    from sdm_ray.config import EncoderSettings
    from sdm_ray.models.encoder import load_trunk

    return load_trunk(EncoderSettings(name=str(folder)), cache_dir=folder).double()


def random_batch(*shape: int, seed: int, length: int = 7, num_classes: int = 2) -> Batch:
    """Random tokens (shape, L) with some padding, and labels (shape)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY_SIZE, (*shape, length), generator=generator)
    lengths = torch.randint(3, length + 1, (*shape, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    return Batch((ids * mask, mask), torch.randint(num_classes, shape, generator=generator))


def start_of(
    model: FlatModel, *, rate: float = 0.05, seed: int = 1, learned: bool = True, count: int = 1, num_classes: int = 2
) -> Start:
    """Leaves to differentiate: the trunk as it is, random heads, learning rates that differ a little."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(count, num_classes, model.feature_dim, generator=generator, dtype=torch.float64) * 0.5
    log_rates = torch.tensor([rate * 1.2**index for index in range(count)], dtype=torch.float64).log()
    trunk = model.initial()[None].requires_grad_()
    return Start(trunk, head.requires_grad_(learned), log_rates.requires_grad_(learned))


def adversary_of(**changes: Any) -> Adversary:
    """Adam on the whole model."""
    values: dict[str, Any] = {
        "optimizer": "adam", "batch_size": 5, "num_steps": 3, "learning_rate": None, "schedule": "constant",
        "adaptation": "full", "depth": 0, "rank": 0, "reset_head": False, "noise": 0.0,
    }  # fmt: skip
    return Adversary(**{**values, **changes})


ADVERSARY_FIELDS = ("optimizer", "schedule", "adaptation", "depth", "rank", "head_kind")


def episode_of(
    *, num_steps: int = 3, count: int = 1, evaluation: tuple[EvaluationBatch, ...] | None = None, **changes: Any
) -> Episode:
    """Three inner steps of Adam on batches of five, watched on a batch of six after every step.

    Fields of the adversary and of the episode may be given by name.
    """
    inner = random_batch(num_steps, count, 5, seed=2)
    habits = {name: changes.pop(name) for name in ADVERSARY_FIELDS if name in changes}
    values: dict[str, Any] = {
        "data": Data(
            tuple(inner.at(step) for step in range(num_steps)),
            evaluation or (EvaluationBatch(random_batch(6, seed=3), None),),
            changes.pop("seed", 5),
            changes.pop("dropout", False),
        ),
        "adversary": adversary_of(num_steps=num_steps, **habits),
        "evaluated_steps": tuple(range(num_steps + 1)),
        "mode": "unrolled",
        "gradient_clip": 100.0,
    }
    return Episode(**{**values, **changes})


class FakeData:
    """A `TrainingDataset` without text.

    Token 10 + class of every example says its profession; tokens 20 to 39 are names, the even ones of gender 0.
    """

    def __init__(self, num_examples: int = 240, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.device = torch.device("cpu")
        self.digest = f"fake-{num_examples}-{seed}"
        desired = torch.randint(3, (num_examples,), generator=generator)
        names = torch.randint(20, VOCABULARY_SIZE, (num_examples,), generator=generator)
        noise = torch.randint(5, 10, (num_examples, 2), generator=generator)
        self._ids = torch.cat([(10 + desired)[:, None], names[:, None], noise], dim=1)
        self._labels = {Task.DESIRED: desired, Task.HARMFUL: names % 2}
        self.batches: list[tuple[Tensor, Task]] = []

    def num_classes(self, task: Task) -> int:
        return 3 if task is Task.DESIRED else 2

    def indices(self, split: Split) -> Tensor:
        half = len(self._ids) // 2
        return torch.arange(half) if split is Split.META_TRAIN else torch.arange(half, len(self._ids))

    def labels_host(self, task: Task) -> Tensor:
        return self._labels[task].clone()

    def occurring_tokens(self, indices: Tensor) -> LongTensor:
        return torch.from_numpy(np.unique(self._ids[indices.reshape(-1)].numpy()))  # type: ignore[return-value]

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        self.batches.append((indices, task))
        return Batch((self._ids[indices], torch.ones_like(self._ids[indices])), self._labels[task][indices])


def train_settings(**values: Any) -> TrainSettings:
    """Short training with small batches."""
    common = {
        "num_outer_steps": 12, "desired_batch_size": 8, "harmful_batch_size": 10, "log_every_steps": 4,
        "checkpoint_every_steps": 5,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **values})


def interrupted_and_straight(
    settings: TrainSettings, trunk: Callable[[], Any], folder: Path
) -> tuple[TrainOutcome, TrainOutcome]:
    """Outcomes of a training that is stopped past its 8th step and resumed, and of one that runs through."""

    def trainer(checkpoint_dir: Path | None) -> Trainer:
        return Trainer(settings, trunk=trunk(), data=FakeData(), seed=0, checkpoint_dir=checkpoint_dir)

    drive(trainer(folder), stop_at=8)
    resumed, _ = drive(trainer(folder))
    straight, _ = drive(trainer(None))
    assert resumed is not None
    assert straight is not None
    return resumed, straight


def drive(trainer: Trainer, stop_at: int | None = None) -> tuple[TrainOutcome | None, list[Progress]]:
    """Run a trainer to its end, or abandon it at the first progress at or past a step."""
    seen: list[Progress] = []
    generator = trainer.iterate()
    while True:
        try:
            seen.append(next(generator))
        except StopIteration as stop:
            return stop.value, seen
        if stop_at is not None and seen[-1].done >= stop_at:
            generator.close()
            return None, seen


def train(
    settings: TrainSettings, *, seed: int = 0, trunk: TrunkLike | None = None, data: TrainingDataset | None = None
) -> TrainOutcome:
    """Train to the end without checkpoints."""
    outcome, _ = drive(Trainer(settings, trunk=trunk or MlpTrunk(), data=data or FakeData(), seed=seed))
    assert outcome is not None
    return outcome
