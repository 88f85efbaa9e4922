"""The step of `pretrained` and `random`: the trunk stands still and the desired head is fitted to its features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.config import TrainSettings
from sdm_ray.data.device import DeviceData
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.functional import FlatModel, TrunkLike
from sdm_ray.meta.generators import Generators
from sdm_ray.meta.inner_loop import FROZEN_RATE_FACTOR
from sdm_ray.meta.outer_optimizer import Group, OuterOptimizer
from sdm_ray.models.heads import init_head, logits
from sdm_ray.types import Params, Split, Task

FEATURE_BATCH_SIZE = 256


class LinearStep:
    """The desired head on features that are computed once; like every head alone, at ten times the learning rate.

    Args:
        settings: batch size, head learning rate and warm-up are used.
        trunk: the encoder; it is not written to.
        data: examples on the device.
        generators: CPU generators of every draw.
    """

    metric_names: tuple[str, ...] = ("train/desired_loss", "train/desired_accuracy", "train/gradient_norm")

    def __init__(self, settings: TrainSettings, *, trunk: TrunkLike, data: DeviceData, generators: Generators) -> None:
        self._model = FlatModel(trunk)
        self._flat = self._model.initial()
        self._generators = generators
        self.desired_head = init_head(
            self._model.feature_dim,
            data.num_classes(Task.DESIRED),
            generators["heads"],
            device=self._flat.device,
            dtype=self._flat.dtype,
        ).requires_grad_()
        self._features, self._labels = self._encode(data)
        rows = torch.arange(len(self._labels))
        self._sampler = EpochSampler(rows, settings.desired_batch_size, generators["desired"])
        self._optimizer = OuterOptimizer(
            [Group([self.desired_head], settings.head_learning_rate * FROZEN_RATE_FACTOR, None)], settings.warmup_steps
        )

    def step(self) -> Tensor:
        """One step of the head.

        Returns:
            (M,) metrics on the device, in the order of `metric_names`.
        """
        rows = self._sampler.next().to(self._labels.device, non_blocking=True)
        labels = self._labels[rows]
        scores = logits(self._features[rows], self.desired_head)
        loss = F.cross_entropy(scores, labels)
        (gradient,) = torch.autograd.grad(loss, self.desired_head)
        norm = self._optimizer.step([[gradient]])
        accuracy = (scores.detach().argmax(-1) == labels).to(torch.float64).mean()
        return torch.stack([loss.detach().to(torch.float64), accuracy, norm.to(torch.float64)])

    def describe_draw(self) -> str:
        """There is no adversary."""
        return ""

    def params(self) -> Params:
        """The trunk's parameters, copied."""
        return {name: value.clone() for name, value in self._model.layout.unflatten(self._flat).items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; the features are computed again."""
        return {
            "desired_head": self.desired_head,
            "optimizer": self._optimizer.state_dict(),
            "sampler": self._sampler.state_dict(),
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        with torch.no_grad():
            self.desired_head.copy_(state["desired_head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._sampler.load_state_dict(state["sampler"])
        self._generators.load_state_dict(state["generators"])

    @torch.no_grad()
    def _encode(self, data: DeviceData) -> tuple[Tensor, Tensor]:
        batches = [
            data.batch(chunk, Task.DESIRED) for chunk in torch.split(data.indices(Split.META_TRAIN), FEATURE_BATCH_SIZE)
        ]
        features = torch.cat([self._model.features(self._flat, batch) for batch in batches])
        return features, torch.cat([batch.labels for batch in batches])
