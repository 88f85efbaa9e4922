"""Blocking terms of the un-adapted model that need more than its outputs on the harmful batch: hidden states, weights,
and the outputs after one simulated step of the trunk.

Where a term simulates a step, `gradient_mode: first_order` takes the step for a constant, as the papers do; every other
mode differentiates through it. The other terms are the same in all modes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdm_ray.config import TermSettings, TrainSettings
from sdm_ray.config.base import MOST
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Batch, Task
from sdm_ray.data.interface import Dataset
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike
from sdm_ray.meta.objectives import TERMS, Trajectory, task_loss, weighted_sum
from sdm_ray.meta.outer.retention import check_hidden_states
from sdm_ray.models.trunk import Trunk

UNADAPTED_READS = ("harmful_hidden", "weights", "midpoint", "harmful_step", "desired_after_step", "desired_base")
"""What these terms read."""
HARMFUL_HEAD_READS = ("midpoint", "harmful_step", "desired_after_step")
"""Those of them that read the harmful head."""


class Point(NamedTuple):
    """The weights at which the terms are computed; none is modified."""

    trunk: Tensor
    """(P,)."""
    desired_head: Tensor
    """(C, D)."""
    harmful_head: Tensor
    """(C', D)."""


class Unadapted:
    """The weighted gradient by the trunk of terms that read one of `UNADAPTED_READS`.

    Args:
        weights: positive weight by term.
        settings: the training.
        model: the trunk as a function; its own parameters are the original encoder's.
        trunk: the original encoder.
        data: the examples.
        generator: CPU generator of the Gaussian noise.

    Raises:
        UsageError: for a term that encoder or data do not allow.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        settings: TrainSettings,
        *,
        model: FlatModel,
        trunk: TrunkLike,
        data: Dataset,
        generator: torch.Generator,
    ) -> None:
        assert all(TERMS[name].reads in UNADAPTED_READS for name in weights), weights
        self._weights, self._settings = dict(weights), settings.terms
        self._exact = settings.gradient_mode != "first_order"
        self._model, self._trunk, self._generator = model, trunk, generator
        self._original = model.initial() if self._reads("weights", "midpoint") else None
        check_terms(self._weights, self._settings, trunk, data)

    def gradient(self, point: Point, harmful: Batch, desired: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradient of the weighted sum of the terms by the trunk. Heads count as constants.

        Args:
            point: weights.
            harmful: the outer harmful batch.
            desired: the outer desired batch.

        Returns:
            (P,) the weighted gradient, and the unweighted value of every term (0-d, detached) by name.
        """
        leaf = point.trunk.detach().requires_grad_()
        point = Point(leaf, point.desired_head.detach(), point.harmful_head.detach())
        gradient, values = torch.zeros_like(leaf), {}
        for name in self._weights:
            value = self._value(name, point, harmful, desired)
            # One term at a time, so that memory holds one graph.
            (part,) = torch.autograd.grad(weighted_sum({name: value}, self._weights), leaf)
            gradient += part
            values[name] = value.detach()
        return gradient, values

    def _value(self, name: str, point: Point, harmful: Batch, desired: Batch) -> Tensor:
        reads, function, settings = TERMS[name].reads, TERMS[name].function, self._settings
        if reads == "harmful_hidden":
            hidden = self._hidden(point.trunk, harmful)
            return function(hidden, self._noise(hidden), harmful.inputs[1])
        if reads == "weights":
            return function(point.trunk, self._original, settings.weight_distance_bound)
        if reads == "midpoint":
            assert self._original is not None
            halfway = (point.trunk + self._original) / 2
            return function(self._outputs(halfway, point.harmful_head, harmful), settings.harmful_midpoint_bound)
        if reads == "desired_base":
            return function(self._outputs(point.trunk, point.desired_head, desired))
        before = self._harmful_loss(point.trunk, point, harmful)
        if reads == "harmful_step":
            stepped = self._step(before, point.trunk, settings.harmful_reduction_step, unit=True)
            return function(before, self._harmful_loss(stepped, point, harmful))
        stepped = self._step(before, point.trunk, settings.collapse_step, unit=False)
        return function(self._outputs(stepped, point.desired_head, desired), settings.collapse_class)

    def _step(self, loss: Tensor, trunk: Tensor, size: float, *, unit: bool) -> Tensor:
        """The trunk (P,) after a step down a loss, along its gradient or its gradient's unit vector."""
        (gradient,) = torch.autograd.grad(loss, trunk, create_graph=self._exact, retain_graph=True)
        if not unit:
            return trunk - size * gradient
        norm: Tensor = torch.linalg.vector_norm(gradient)
        return trunk - size * gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)

    def _harmful_loss(self, trunk: Tensor, point: Point, batch: Batch) -> Tensor:
        return task_loss(self._model.logits(trunk, point.harmful_head, batch), batch.labels)

    def _outputs(self, trunk: Tensor, head: Tensor, batch: Batch) -> Trajectory:
        features = self._model.features(trunk, batch)
        return Trajectory((features @ head.mT)[None], features[None], batch.labels, (0,))

    def _hidden(self, trunk: Tensor, batch: Batch) -> Tensor:
        """Hidden states (H, B, L, D) that become noise."""
        assert isinstance(self._trunk, nn.Module)
        params = self._model.layout.unflatten(trunk)
        hidden: Tensor = functional_call(self._trunk, params, batch.inputs, {"hidden_states": True})[1]
        layers = self._settings.representation_noise_layers
        return torch.stack([hidden[layer] for layer in layers]) if layers else hidden

    def _noise(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self._generator)
        if like.device.type == "cuda":
            drawn = drawn.pin_memory()  # from pageable memory the copy would wait for the device
        return drawn.to(like, non_blocking=True)

    def _reads(self, *kinds: str) -> bool:
        return any(TERMS[name].reads in kinds for name in self._weights)


def check_terms(names: Collection[str], settings: TermSettings, trunk: TrunkLike, data: Dataset) -> None:
    """Refuse terms that the encoder or the data do not allow.

    Args:
        names: terms that have a weight; those of other kinds are not looked at.
        settings: of single terms.
        trunk: the encoder.
        data: the examples.

    Raises:
        UsageError: saying which setting to change.
    """
    if "representation_noise" in names:
        check_hidden_states("representation_noise", trunk)
        last = trunk.hf_model.config.num_hidden_layers if isinstance(trunk, Trunk) else MOST
        beyond = [layer for layer in settings.representation_noise_layers if layer > last]
        if beyond:
            raise UsageError(
                f"train.terms.representation_noise_layers names hidden state {beyond[0]}, but the encoder has 0 to "
                f"{last}; leave it out"
            )
    if "collapse" in names:
        if data.labels_host(Task.DESIRED).is_floating_point():
            raise UsageError(
                "train.blocking.collapse needs classes to collapse into, but the desired task is a regression; set its "
                "weight to 0"
            )
        chosen, count = settings.collapse_class, data.num_classes(Task.DESIRED)
        if chosen >= count:
            raise UsageError(
                f"train.terms.collapse_class is {chosen}, but the desired task has classes 0 to {count - 1}; name one "
                "of these"
            )


__all__ = ["HARMFUL_HEAD_READS", "UNADAPTED_READS", "Point", "Unadapted", "check_terms"]
