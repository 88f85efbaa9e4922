"""The outer step of the methods that train the trunk: it updates the trunk, the desired head and the parameters that
adversaries learn (harmful head, inner learning rate, predictors)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Batch, Params, Split, Task
from sdm_ray.data.interface import TrainingDataset, labelled
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.adversaries.fresh import MetaParameters
from sdm_ray.meta.inner.episode import Execution
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike
from sdm_ray.meta.inner.memory import ModeChooser
from sdm_ray.meta.objectives import accuracies, load_terms, task_loss
from sdm_ray.meta.outer.accumulator import GradientAccumulator, single
from sdm_ray.meta.outer.adversaries import Drawn, SimulatedAdversaries
from sdm_ray.meta.outer.distil import Distillation
from sdm_ray.meta.outer.embedding_map import EmbeddingMap
from sdm_ray.meta.outer.learned import LearnedParameters
from sdm_ray.meta.outer.optimizer import Group, OuterOptimizer
from sdm_ray.meta.outer.plan import Plan
from sdm_ray.meta.outer.retention import GeneralSources, Retention
from sdm_ray.meta.outer.unadapted import Point, Unadapted
from sdm_ray.models.erasure import Erasure
from sdm_ray.models.heads import init_head


class OuterStep:
    """The state of meta-training and its step function.

    Args:
        settings: training settings with a method that trains the trunk.
        trunk: the initial encoder; it is not modified.
        data: examples on the device.
        generators: CPU generators of every draw.
        indices: (N,) training examples, on the host; None for the whole meta-training split.
        general: text and masked-LM head of the `retain_*` terms; None if those terms are off.
        erasure: applied to the trunk at the start and after every step; None for none.
        distillation: replaces the desired loss and the initial weights; None for none.

    Raises:
        UsageError: for settings that do not fit the data, or an unknown term.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        trunk: TrunkLike,
        data: TrainingDataset,
        generators: Generators,
        indices: Tensor | None = None,
        general: GeneralSources | None = None,
        erasure: Erasure | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self._settings, self._data, self._generators = settings, data, generators
        self._distillation = distillation
        load_terms(settings.term_modules, settings.blocking.weights())
        self._plan = Plan.of(settings)
        self.model = FlatModel(trunk)
        self.trunk = self._initial().requires_grad_()
        self._erasure = erasure
        self._erase()
        head = self._new_head(Task.DESIRED) if distillation is None else distillation.student.head.clone()
        self.desired_head = head.requires_grad_()
        indices = data.indices(Split.META_TRAIN) if indices is None else indices
        desired = labelled(data, indices, Task.DESIRED)
        self._desired = EpochSampler(desired, settings.desired_batch_size, generators["desired"])
        self._harmful = EpochSampler(indices, settings.harmful_batch_size, generators["harmful"])
        self.learned = LearnedParameters(settings.adversary, self._plan, self._new_head(Task.HARMFUL))
        self.adversaries = SimulatedAdversaries(
            settings,
            plan=self._plan,
            model=self.model,
            data=data,
            generators=generators,
            indices=indices,
            execution=Execution(ModeChooser(data.device), self._autocast, settings.compile),
        )
        self._retention = None
        if self._plan.retention:
            self._retention = Retention(
                self._plan.retention,
                settings.retain,
                model=self.model,
                trunk=trunk,
                sources=general,
                data=data,
                indices=indices,
                generator=generators["retain"],
            )
        self._unadapted = None
        if self._plan.unadapted:
            self._unadapted = Unadapted(
                self._plan.unadapted,
                settings,
                model=self.model,
                trunk=trunk,
                data=data,
                generator=generators["representation_noise"],
            )
        self._map = EmbeddingMap(trunk, self.model) if settings.embedding_map_learning_rate else None
        self._optimizer = OuterOptimizer(self._groups(), settings)
        self._count = 0
        self.num_texts = 0
        """Texts that the last step read, its adversaries' included."""
        self.metric_names = self._names()

    def _groups(self) -> list[Group]:
        settings = self._settings
        shared = [] if self._map is None else [self._map.map]
        return [
            Group([self.trunk], settings.learning_rate, settings.gradient_clip, self.model.layout.unflatten),
            Group([self.desired_head], settings.head_learning_rate, None),
            Group([value for _, value in self.learned.trained()], settings.adversary_learning_rate, None),
            Group(shared, settings.embedding_map_learning_rate, settings.gradient_clip),
        ]

    def step(self) -> Tensor:
        """One outer step.

        Returns:
            (M,) metrics on the device, in the order of `metric_names`.
        """
        total, parts = GradientAccumulator(), self._settings.accumulation_steps
        self.adversaries.begin_step(self.trunk.detach())
        self.num_texts = 0
        for _ in range(parts):
            self._micro_step(total)
        self.adversaries.end_step()
        scaled = {name: value / parts if parts > 1 else value for name, value in total.gradients.items()}
        self._count += 1
        shared: list[Tensor | None] = [] if self._map is None else [self._map.gradient(self.trunk, scaled["trunk"])]
        learned = [scaled.get(name) for name, _ in self.learned.trained()]
        self.num_texts += self.adversaries.num_texts
        norm = self._optimizer.step([[scaled["trunk"]], [scaled.get("desired_head")], learned, shared])
        if self._map is not None:
            self._map.fold(self.trunk)
        self._erase()
        total.add_metric("train/gradient_norm", norm, share=parts)
        self.learned.bound_learning_rate()
        return torch.stack([total.metrics[name] for name in self.metric_names]) / parts

    def describe_draw(self) -> str:
        """A description of the last step's adversaries; empty if there were none."""
        return " and ".join(self.adversaries.draws)

    def probe(self) -> dict[int, float] | None:
        """Harmful loss by inner step at the current weights, averaged over a few adversaries.

        Every call uses the same adversaries and leaves the training state unchanged. None if the method simulates no
        adversary. Synchronises with the device.
        """
        return self.adversaries.probe(
            MetaParameters(*(value.detach() for value in self.learned.with_trunk(self.trunk)))
        )

    def params(self) -> Params:
        """A copy of the trunk's parameters."""
        views = self.model.layout.unflatten(self.trunk.detach())
        return {name: value.clone() for name, value in views.items()}

    def state_dict(self) -> dict[str, Any]:
        """All state that later steps depend on."""
        return {
            "count": self._count,
            "trunk": self.params(),
            "desired_head": self.desired_head,
            **self.learned.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            **self.adversaries.state_dict(),
            "erasure": None if self._erasure is None else self._erasure.state_dict(),
            "distillation": None if self._distillation is None else self._distillation.state_dict(),
            "desired_sampler": self._desired.state_dict(),
            "harmful_sampler": self._harmful.state_dict(),
            "retention": None if self._retention is None else self._retention.state_dict(),
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._count = state["count"]
        with torch.no_grad():
            self.trunk.copy_(self.model.layout.flatten(state["trunk"]))
            for name, value in {"desired_head": self.desired_head, **self.learned.state_dict()}.items():
                if value is not None:
                    value.copy_(state[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.adversaries.load_state_dict(state)
        if self._erasure is not None:  # computed again on another machine, it may differ in the last bits
            self._erasure = Erasure.from_state(self._erasure.stream, state["erasure"])
        if self._distillation is not None:
            self._distillation.load_state_dict(state["distillation"])
        self._desired.load_state_dict(state["desired_sampler"])
        self._harmful.load_state_dict(state["harmful_sampler"])
        if self._retention is not None:
            self._retention.load_state_dict(state["retention"])
        self._generators.load_state_dict(state["generators"])

    def _micro_step(self, total: GradientAccumulator) -> None:
        """Gradients and metrics of one micro-step."""
        desired = self._draw(self._desired, Task.DESIRED)
        if self._distillation is None:
            self._add_desired(total, desired.batch)
            self.num_texts += len(desired.indices)
        else:
            self._add_distillation(total, self._distillation)
            self.num_texts += self._distillation.texts_per_step
        if self._plan.draws_harmful():
            harmful = self._draw(self._harmful, Task.HARMFUL)
            self.num_texts += len(harmful.indices)
            self._add_blocking(total, desired, harmful)
        if self._retention is not None:
            total.add_terms(*self._retention.gradient(self.trunk.detach(), desired.batch))
            self.num_texts += self._retention.num_texts

    def _draw(self, sampler: EpochSampler, task: Task) -> Drawn:
        indices = sampler.next()
        return Drawn(self._data.batch(indices, task, coarse=self._settings.compile), indices)

    def _add_desired(self, total: GradientAccumulator, batch: Batch) -> None:
        with self._autocast():
            scores = self.model.logits(self.trunk, self.desired_head, batch)
            loss = task_loss(scores, batch.labels)
        weighted = self._settings.blocking.desired_base * loss
        trunk, head = torch.autograd.grad(weighted, (self.trunk, self.desired_head))
        total.add_gradient("trunk", trunk)
        total.add_gradient("desired_head", head)
        total.add_metric("train/desired_loss", loss)
        total.add_metric("train/desired_accuracy", accuracies(single(scores, batch.labels))[0])

    def _add_distillation(self, total: GradientAccumulator, distillation: Distillation) -> None:
        with self._autocast():
            params = self.model.layout.unflatten(self.trunk)
            trunk, head, values = distillation.gradient(params, self.desired_head, self.trunk)
        total.add_gradient("trunk", trunk)
        if head is not None:
            total.add_gradient("desired_head", head)
        for name, value in values.items():
            total.add_metric(f"train/{name}", value)

    def _add_blocking(self, total: GradientAccumulator, desired: Drawn, harmful: Drawn) -> None:
        """Blocking terms: of simulated adversaries, of both tasks' gradients, and of the un-adapted model."""
        plan, adversaries, learned = self._plan, self.adversaries, self.learned
        if plan.fresh:
            adversaries.add_fresh(total, self.trunk, learned, harmful, self._count)
        if plan.pool:
            adversaries.add_pool(total, self.trunk, harmful)
        if plan.desired:
            parameters = MetaParameters(self.trunk, self.desired_head, learned.log_learning_rate.detach())
            adversaries.add_desired(total, parameters, learned.harmful_head.detach(), desired, harmful, self._count)
        if plan.gradients:
            self._add_coupling(total, desired.batch, harmful.batch)
        if self._unadapted is not None:
            point = Point(self.trunk, self.desired_head, learned.harmful_head)
            total.add_terms(*self._unadapted.gradient(point, harmful.batch, desired.batch))
        if learned.fits_head:
            scores = self.model.logits(self.trunk.detach(), learned.harmful_head, harmful.batch)
            (head,) = torch.autograd.grad(task_loss(scores, harmful.batch.labels), learned.harmful_head)
            total.add_gradient("harmful_head", head)

    def _add_coupling(self, total: GradientAccumulator, desired: Batch, harmful: Batch) -> None:
        """Terms of both tasks' gradients. Without fresh terms, the harmful head is trained on its own loss here."""
        losses = [
            task_loss(self.model.logits(self.trunk, head, batch), batch.labels)
            for head, batch in ((self.learned.harmful_head, harmful), (self.desired_head.detach(), desired))
        ]
        total.add_coupling(losses[0], losses[1], self.trunk, self._plan.gradients)
        if not self._plan.fresh:
            (head,) = torch.autograd.grad(losses[0], self.learned.harmful_head)
            total.add_gradient("harmful_head", head)

    def _initial(self) -> Tensor:
        """(P,) where the trunk starts."""
        if self._distillation is None:
            return self.model.initial()
        return self.model.layout.flatten(self._distillation.student.params)

    def _erase(self) -> None:
        """Apply the erasure to the trunk, in place."""
        if self._erasure is not None:
            self._erasure.apply(self.model.layout.unflatten(self.trunk.detach()))

    def _new_head(self, task: Task) -> Tensor:
        return init_head(
            self.model.feature_dim,
            self._data.num_classes(task),
            self._generators["heads"],
            device=self.trunk.device,
            dtype=self.trunk.dtype,
        )

    def _autocast(self) -> AbstractContextManager[object]:
        if self._settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.trunk.device.type, torch.bfloat16)

    def _names(self) -> tuple[str, ...]:
        names = ["train/desired_loss", "train/desired_accuracy"]
        if self._distillation is not None:
            names = [f"train/{name}" for name in self._distillation.metric_names]
        names += self.adversaries.metric_names()
        return (*names, *(f"train/{name}" for name in self._plan.terms()), "train/gradient_norm")
