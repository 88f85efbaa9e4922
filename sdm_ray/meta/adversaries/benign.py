"""Training on the desired task before the harmful one, as attackers do who first fine-tune on something harmless.

The steps give a displacement of the trunk, which is a constant of the adversary's start: meta-gradients do not pass
through them. They are Adam's on the whole model, from a fresh desired head that is then dropped. Batches, head and
learning rate are functions of the adversary's seed, so nothing of them is stored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Task
from sdm_ray.data.interface import TrainingDataset, labelled
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.adversaries.distribution import log_uniform
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.episode import Episode, Execution, Start
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.loop import displacement
from sdm_ray.meta.inner.problems import Data
from sdm_ray.models.heads import init_head


class BenignFirst:
    """Trains adversaries on the desired task.

    Args:
        settings: the training.
        model: the trunk as a function.
        data: examples on the device.
        indices: (N,) host indices of meta-training.
        execution: how the steps are computed.

    Raises:
        UsageError: if no example has a desired label.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        model: FlatModel,
        data: TrainingDataset,
        indices: Tensor,
        execution: Execution | None = None,
    ) -> None:
        self._settings, self._model, self._data, self._execution = settings, model, data, execution
        self._indices = labelled(data, indices, Task.DESIRED)
        if not len(self._indices):
            weight = settings.adversary.starts.benign_first
            raise UsageError(
                f"train.adversary.starts.benign_first is {weight:g}, but the data have no desired task; set it to 0"
            )
        self.num_texts = 0
        """Texts that were trained on since the last `take_texts`."""

    def displacement(self, adversary: Adversary, trunk: Tensor) -> Tensor:
        """(P,) by how much an adversary's steps on the desired task move the trunk (P,)."""
        settings = self._settings
        generator = torch.Generator().manual_seed(adversary.start_seed)
        rate = log_uniform(settings.adversary.starts.benign_first_learning_rate, generator)
        head = init_head(
            self._model.feature_dim,
            self._data.num_classes(Task.DESIRED),
            generator,
            device=trunk.device,
            dtype=trunk.dtype,
        )
        size, num_steps = min(adversary.batch_size, len(self._indices)), round(adversary.start_amount)
        sampler = EpochSampler(self._indices, size, generator)
        drawn = [sampler.next()[None] for _ in range(num_steps)]
        rows = None
        if self._model.trunk.embedding_name is not None:
            tokens = self._data.occurring_tokens(torch.cat(drawn))
            rows = self._model.plan_rows(tokens, self._data.device, coarse=settings.compile)
        episode = Episode(
            data=Data(tuple(self._data.batch(one, Task.DESIRED, coarse=settings.compile) for one in drawn), ()),
            adversary=_benign(size, num_steps, rate),
            evaluated_steps=(),
            mode="first_order",
            gradient_clip=settings.adversary.gradient_clip,
            rows=rows,
        )
        start = Start(trunk[None], head[None], trunk.new_full((1,), math.log(rate)))
        self.num_texts += num_steps * size
        return displacement(self._model, start, episode, execution=self._execution)[0]

    def take_texts(self) -> int:
        """Texts that were trained on since the last call."""
        count, self.num_texts = self.num_texts, 0
        return count


def _benign(batch_size: int, num_steps: int, learning_rate: float) -> Adversary:
    """Adam on the whole model."""
    return Adversary(
        optimizer="adam",
        batch_size=batch_size,
        num_steps=num_steps,
        learning_rate=learning_rate,
        schedule="constant",
        adaptation="full",
        depth=0,
        rank=0,
        reset_head=True,
        noise=0.0,
    )
