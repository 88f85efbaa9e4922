"""Validation: the desired task's accuracy while training, on examples that meta-training never sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.config.train import UNTRAINED
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.seeds import generator_seed
from sdm_ray.core.types import Split, Task
from sdm_ray.data.interface import Dataset, labelled
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.objectives import task_loss

BATCH_SIZE = 256


def split_meta_train(data: Dataset, settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """Sorted host indices of the training and the held-out examples, the same for every seed and method.

    Raises:
        UsageError: where one of the two would be empty, or a bound is set without validations.
    """
    indices, validation = data.indices(Split.META_TRAIN), settings.validation
    if not validation.every_steps:
        if validation.min_desired_accuracy is not None:
            raise UsageError(
                "train.validation.min_desired_accuracy needs validations: set train.validation.every_steps above 0"
            )
        return indices, indices[:0]
    num_held = round(validation.fraction * len(indices))
    if not 0 < num_held < len(indices):
        raise UsageError(
            f"train.validation.fraction is {validation.fraction:g}, which holds out {num_held} of {len(indices)} "
            "meta-training examples; leave at least one on each side"
        )
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(generator_seed(0, "validation")))
    trained, held = indices[order[num_held:].sort().values], indices[order[:num_held].sort().values]
    if not min(len(labelled(data, part, Task.DESIRED)) for part in (trained, held)):
        raise UsageError(
            f"train.validation.fraction is {validation.fraction:g}: of the {num_held} held-out examples and of the "
            "others, one has no desired label; raise data.desired_labels or hold out more"
        )
    return trained, held


class Validation:
    """Measures the desired task every few outer steps and says when to stop training.

    Args:
        data: examples on the device.
        indices: (N,) host indices that are held out.
        settings: how often, and the bound.
    """

    def __init__(self, data: Dataset, indices: Tensor, settings: TrainSettings) -> None:
        self._data, self._chunks = data, torch.split(labelled(data, indices, Task.DESIRED), BATCH_SIZE)
        self._settings = settings.validation
        self._bound = None if settings.method in UNTRAINED else settings.validation.min_desired_accuracy
        self._num_misses = 0

    def due(self, step: int) -> bool:
        """Whether to measure after this outer step."""
        every = self._settings.every_steps
        return every > 0 and step % every == 0

    @torch.no_grad()
    def measure(self, model: FlatModel, trunk: Tensor, head: Tensor) -> dict[str, float]:
        """Accuracy and loss (nats) on the held-out examples, by metric; synchronises with the device once.

        Args:
            model: the architecture.
            trunk: (P,) its parameters.
            head: (C, D) the desired head.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=trunk.device)
        for chunk in self._chunks:
            batch = self._data.batch(chunk, Task.DESIRED)
            scores = model.logits(trunk, head, batch)
            right = (scores.argmax(-1) == batch.labels).to(torch.float64).mean()
            sums += torch.stack([right, task_loss(scores, batch.labels).to(torch.float64)]) * len(chunk)
        accuracy, loss = (sums / sum(map(len, self._chunks))).tolist()
        return {str(Metric.VALIDATION_ACCURACY): accuracy, str(Metric.VALIDATION_LOSS): loss}

    def judge(self, step: int, accuracy: float) -> str | None:
        """Count consecutive validations below the bound; the reason to stop after more than `patience`, else None.

        A validation that meets the bound resets the count.
        """
        if self._bound is None:
            return None
        self._num_misses = self._num_misses + 1 if accuracy < self._bound else 0
        if self._num_misses <= self._settings.patience:
            return None
        times = f" in {self._num_misses} validations in a row" if self._num_misses > 1 else ""
        return (
            f"training stopped at outer step {step}: the desired accuracy on held-out examples is {accuracy:.4f}, "
            f"below train.validation.min_desired_accuracy {self._bound:g}{times}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The number of consecutive validations below the bound."""
        return {"num_misses": self._num_misses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._num_misses = state["num_misses"]
