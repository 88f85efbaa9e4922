"""The step of the methods `pretrained` and `random`: the trunk is frozen, and the desired head is trained on it.

Features of a pretrained encoder have almost the same direction. A linear head trained on raw features is still far from
its optimum after thousands of steps, so the head is trained on whitened features, and the whitening matrix is
multiplied into it afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.interface import Dataset, labelled
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike
from sdm_ray.meta.objectives import task_loss
from sdm_ray.meta.outer.optimizer import Group, OuterOptimizer
from sdm_ray.models.heads import init_head, logits

FEATURE_BATCH_SIZE = 256
SMALLEST_MOMENT = 1e-6


class LinearStep:
    """Training of the desired head on whitened features, which are computed once.

    Args:
        settings: batch size, head learning rate and the outer optimiser's settings are used.
        trunk: the encoder; it is not modified.
        data: examples on the device.
        generators: CPU generators of every draw.
        indices: (N,) training examples, on the host; None for the whole meta-training split.
    """

    metric_names: tuple[str, ...] = ("train/desired_loss", "train/desired_accuracy", "train/gradient_norm")

    def __init__(
        self,
        settings: TrainSettings,
        *,
        trunk: TrunkLike,
        data: Dataset,
        generators: Generators,
        indices: Tensor | None = None,
    ) -> None:
        self.model = FlatModel(trunk)
        self.trunk = self.model.initial()
        self._generators = generators
        indices = data.indices(Split.META_TRAIN) if indices is None else indices
        features, self._labels = self._encode(data, labelled(data, indices, Task.DESIRED))
        self._whitening = whitening(features)
        self._features = features @ self._whitening
        self._head = init_head(
            self.model.feature_dim,
            data.num_classes(Task.DESIRED),
            generators["heads"],
            device=self.trunk.device,
            dtype=self.trunk.dtype,
        ).requires_grad_()
        rows = torch.arange(len(self._labels))
        self._sampler = EpochSampler(rows, settings.desired_batch_size, generators["desired"])
        self.num_texts = 0
        """Texts that the last step read (as features, which are computed once)."""
        self._optimizer = OuterOptimizer([Group([self._head], settings.head_learning_rate, None)], settings)

    def step(self) -> Tensor:
        """One step of the head.

        Returns:
            (M,) metrics on the device, in the order of `metric_names`.
        """
        drawn = self._sampler.next()
        self.num_texts = len(drawn)
        rows = drawn.to(self._labels.device, non_blocking=True)
        labels = self._labels[rows]
        scores = logits(self._features[rows], self._head)
        loss = task_loss(scores, labels)
        (gradient,) = torch.autograd.grad(loss, self._head)
        norm = self._optimizer.step([[gradient]])
        accuracy = (scores.detach().argmax(-1) == labels).to(torch.float64).mean()
        return torch.stack([loss.detach().to(torch.float64), accuracy, norm.to(torch.float64)])

    @property
    def desired_head(self) -> Tensor:
        """(C, D) head for the raw features."""
        return self._head @ self._whitening

    def describe_draw(self) -> str:
        """Empty: there is no adversary."""
        return ""

    def probe(self) -> None:
        """None: there is no adversary."""

    def params(self) -> Params:
        """A copy of the trunk's parameters."""
        return {name: value.clone() for name, value in self.model.layout.unflatten(self.trunk).items()}

    def state_dict(self) -> dict[str, Any]:
        """All state that later steps depend on, except the features, which are recomputed."""
        return {
            "head": self._head,
            "optimizer": self._optimizer.state_dict(),
            "sampler": self._sampler.state_dict(),
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        with torch.no_grad():
            self._head.copy_(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._sampler.load_state_dict(state["sampler"])
        self._generators.load_state_dict(state["generators"])

    @torch.no_grad()
    def _encode(self, data: Dataset, indices: Tensor) -> tuple[Tensor, Tensor]:
        batches = [data.batch(chunk, Task.DESIRED) for chunk in torch.split(indices, FEATURE_BATCH_SIZE)]
        features = torch.cat([self.model.features(self.trunk, batch) for batch in batches])
        return features, torch.cat([batch.labels for batch in batches])


def whitening(features: Tensor) -> Tensor:
    """The symmetric (D, D) matrix P such that the second-moment matrix of `features @ P` is the identity.

    Eigenvalues below `SMALLEST_MOMENT` times the largest are raised to that value.

    Args:
        features: (N, D).
    """
    values = features.double()
    moments, directions = torch.linalg.eigh(values.T @ values / len(values))
    scales = moments.clamp_min(SMALLEST_MOMENT * float(moments[-1])).rsqrt()
    matrix: Tensor = (directions * scales) @ directions.T
    return matrix.to(features.dtype)
