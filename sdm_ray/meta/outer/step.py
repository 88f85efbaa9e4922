"""The outer step of the methods that train the trunk: it updates the trunk, the desired head and the parameters that
adversaries learn (harmful head, inner learning rate, predictors)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Batch, Params, Split, Task
from sdm_ray.data.interface import TrainingDataset, labelled
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.fresh import MetaParameters, Simulator
from sdm_ray.meta.adversaries.pool import AdversaryPool
from sdm_ray.meta.adversaries.starts import Starts
from sdm_ray.meta.inner.episode import Execution
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike
from sdm_ray.meta.inner.memory import ModeChooser
from sdm_ray.meta.inner.problems import EvaluationBatch
from sdm_ray.meta.objectives import TERMS, accuracies, load_terms, step_losses, task_loss
from sdm_ray.meta.outer.accumulator import GradientAccumulator, ends, single
from sdm_ray.meta.outer.distil import Distillation
from sdm_ray.meta.outer.embedding_map import EmbeddingMap
from sdm_ray.meta.outer.optimizer import Group, OuterOptimizer
from sdm_ray.meta.outer.plan import Plan
from sdm_ray.meta.outer.retention import GeneralSources, Retention
from sdm_ray.meta.outer.trajectory import PROBED_EXAMPLES, mean_trajectory, probe_settings
from sdm_ray.meta.outer.unadapted import Point, Unadapted
from sdm_ray.models.encoder import fresh_params
from sdm_ray.models.erasure import Erasure
from sdm_ray.models.heads import init_head
from sdm_ray.models.trunk import Trunk


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
        indices = self._indices = data.indices(Split.META_TRAIN) if indices is None else indices
        self._of_task = {task: labelled(data, indices, task) for task in Task}
        self._desired = EpochSampler(self._of_task[Task.DESIRED], settings.desired_batch_size, generators["desired"])
        self._harmful = EpochSampler(indices, settings.harmful_batch_size, generators["harmful"])
        self._execution = Execution(ModeChooser(data.device), self._autocast, settings.compile)
        self._init_learned()
        self._init_adversaries(indices)
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
        self._draws: list[str] = []
        self.metric_names = self._names()

    def _init_learned(self) -> None:
        adversary, plan = self._settings.adversary, self._plan
        self.harmful_head = self._new_head(Task.HARMFUL)
        self.log_learning_rate = self.trunk.new_tensor(math.log(adversary.learning_rate_initial)).detach()
        own_head = bool(plan.fresh) and (adversary.head != "reset" or not plan.simulates())
        if (
            own_head
            or plan.reads_harmful_head()
            or any(TERMS[name].reads == "desired_adapted_harmful" for name in plan.desired)
        ):
            self.harmful_head.requires_grad_()
        if plan.num_steps and adversary.learning_rate_mode == "meta_learned" and self._fresh_adapts():
            self.log_learning_rate.requires_grad_()
        self.predictors: Tensor | None = None
        if any(TERMS[name].reads == "predicted" for name in plan.fresh):
            shape = (plan.num_steps + 1, *self.harmful_head.shape)
            self.predictors = self.trunk.new_zeros(shape).detach().requires_grad_()

    def _init_adversaries(self, indices: Tensor) -> None:
        settings = self._settings
        few_shots = {
            task: FewShot(owned, _classes(self._data.labels_host(task)[owned])) for task, owned in self._of_task.items()
        }
        pool, fresh = settings.adversary.pool.subset_size, settings.adversary.subset_size
        few_shots[Task.HARMFUL].check(fresh if self._plan.num_steps else None, "adversary.subset_size")
        few_shots[Task.HARMFUL].check(pool if self._plan.pool else None, "adversary.pool.subset_size")
        self._few_shots = few_shots
        self._simulators = {
            Task.HARMFUL: self._simulator(
                settings, Task.HARMFUL, self._generators["adversary"], self._starts("starts", self._plan.fresh)
            ),
            Task.DESIRED: self._simulator(settings, Task.DESIRED, self._generators["desired_adversary"]),
        }
        self.pool = AdversaryPool(
            settings,
            few_shot=few_shots[Task.HARMFUL],
            generator=self._generators["pool"],
            model=self.model,
            data=self._data,
            indices=indices,
            execution=self._execution,
            starts=self._starts("pool_starts", self._plan.pool),
        )
        if self._plan.pool:
            self.pool.start(self.trunk.detach())

    def _starts(self, generator: str, terms: dict[str, float]) -> Starts | None:
        """What adversaries that serve these terms start from; None where all start from the current weights."""
        settings, trunk = self._settings.adversary.starts, self.model.trunk
        if not (settings.edits and terms):
            return None
        return Starts(
            settings,
            model=self.model,
            generator=self._generators[generator],
            public=self.model.initial() if settings.interpolated else None,
            redraw=partial(fresh_params, trunk) if isinstance(trunk, Trunk) else None,
        )

    def _simulator(
        self, settings: TrainSettings, task: Task, generator: torch.Generator, starts: Starts | None = None
    ) -> Simulator:
        return Simulator(
            settings,
            model=self.model,
            data=self._data,
            task=task,
            indices=self._of_task[task],
            few_shot=self._few_shots[task],
            generator=generator,
            execution=self._execution,
            starts=starts,
        )

    def _groups(self) -> list[Group]:
        settings = self._settings
        shared = [] if self._map is None else [self._map.map]
        return [
            Group([self.trunk], settings.learning_rate, settings.gradient_clip, self.model.layout.unflatten),
            Group([self.desired_head], settings.head_learning_rate, None),
            Group([value for _, value in self._learned()], settings.adversary_learning_rate, None),
            Group(shared, settings.embedding_map_learning_rate, settings.gradient_clip),
        ]

    def _learned(self) -> list[tuple[str, Tensor]]:
        """Parameters that the outer optimiser trains on behalf of adversaries, by name."""
        named = {
            "harmful_head": self.harmful_head,
            "log_learning_rate": self.log_learning_rate,
            "predictors": self.predictors,
        }
        return [(name, value) for name, value in named.items() if value is not None and value.requires_grad]

    def step(self) -> Tensor:
        """One outer step.

        Returns:
            (M,) metrics on the device, in the order of `metric_names`.
        """
        total, parts = GradientAccumulator(), self._settings.accumulation_steps
        self._draws = []
        for _ in range(parts):
            self._micro_step(total)
        scaled = {name: value / parts if parts > 1 else value for name, value in total.gradients.items()}
        self._count += 1
        shared: list[Tensor | None] = [] if self._map is None else [self._map.gradient(self.trunk, scaled["trunk"])]
        learned = [scaled.get(name) for name, _ in self._learned()]
        norm = self._optimizer.step([[scaled["trunk"]], [scaled.get("desired_head")], learned, shared])
        if self._map is not None:
            self._map.fold(self.trunk)
        self._erase()
        total.add_metric("train/gradient_norm", norm, share=parts)
        self._bound_learning_rate()
        return torch.stack([total.metrics[name] for name in self.metric_names]) / parts

    def describe_draw(self) -> str:
        """A description of the last step's adversaries; empty if there were none."""
        return " and ".join(self._draws)

    def probe(self) -> dict[int, float] | None:
        """Harmful loss by inner step at the current weights, averaged over a few adversaries.

        Every call uses the same adversaries and leaves the training state unchanged. None if the method simulates no
        adversary. Synchronises with the device.
        """
        if not self._plan.simulates():
            return None
        settings = probe_settings(self._settings, fresh=self._fresh_adapts())
        simulator = self._simulator(settings, Task.HARMFUL, torch.Generator().manual_seed(0))
        indices = self._indices[:PROBED_EXAMPLES]
        parameters = MetaParameters(self.trunk.detach(), self.harmful_head.detach(), self.log_learning_rate.detach())
        return mean_trajectory(simulator, parameters, self._data.batch(indices, Task.HARMFUL), indices)

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
            "harmful_head": self.harmful_head,
            "log_learning_rate": self.log_learning_rate,
            "predictors": self.predictors,
            "optimizer": self._optimizer.state_dict(),
            "pool": self.pool.state_dict(),
            "erasure": None if self._erasure is None else self._erasure.state_dict(),
            "distillation": None if self._distillation is None else self._distillation.state_dict(),
            "desired_sampler": self._desired.state_dict(),
            "harmful_sampler": self._harmful.state_dict(),
            "inner_samplers": {str(task): value.state_dict() for task, value in self._simulators.items()},
            "retention": None if self._retention is None else self._retention.state_dict(),
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._count = state["count"]
        with torch.no_grad():
            self.trunk.copy_(self.model.layout.flatten(state["trunk"]))
            for name in ("desired_head", "harmful_head", "log_learning_rate", "predictors"):
                if state[name] is not None:
                    getattr(self, name).copy_(state[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.pool.load_state_dict(state["pool"])
        if self._erasure is not None:  # computed again on another machine, it may differ in the last bits
            self._erasure = Erasure.from_state(self._erasure.stream, state["erasure"])
        if self._distillation is not None:
            self._distillation.load_state_dict(state["distillation"])
        self._desired.load_state_dict(state["desired_sampler"])
        self._harmful.load_state_dict(state["harmful_sampler"])
        for task, simulator in self._simulators.items():
            simulator.load_state_dict(state["inner_samplers"][str(task)])
        if self._retention is not None:
            self._retention.load_state_dict(state["retention"])
        self._generators.load_state_dict(state["generators"])

    def _micro_step(self, total: GradientAccumulator) -> None:
        """Gradients and metrics of one micro-step."""
        plan = self._plan
        desired_indices = self._desired.next()
        desired = self._data.batch(desired_indices, Task.DESIRED, coarse=self._settings.compile)
        if self._distillation is None:
            self._add_desired(total, desired)
        else:
            self._add_distillation(total, self._distillation)
        if plan.fresh or plan.pool or plan.desired or plan.gradients or plan.unadapted:
            harmful_indices = self._harmful.next()
            harmful = self._data.batch(harmful_indices, Task.HARMFUL, coarse=self._settings.compile)
            if plan.fresh:
                self._add_fresh(total, harmful, harmful_indices)
            if plan.pool:
                self._add_pool(total, harmful, harmful_indices)
            if plan.desired:
                indices = torch.cat([desired_indices, harmful_indices])
                self._add_desired_adapted(total, desired, harmful, indices)
            if plan.gradients:
                self._add_coupling(total, desired, harmful)
            if self._unadapted is not None:
                self._add_unadapted(total, self._unadapted, desired, harmful)
        if self._retention is not None:
            gradient, values = self._retention.gradient(self.trunk.detach(), desired)
            total.add_gradient("trunk", gradient)
            for name, value in values.items():
                total.add_metric(f"train/{name}", value)

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

    def _add_fresh(self, total: GradientAccumulator, outer: Batch, indices: Tensor) -> None:
        simulator, adapts = self._simulators[Task.HARMFUL], self._fresh_adapts()
        adversaries = simulator.draw(self._count, takes_steps=adapts)
        parameters = MetaParameters(self.trunk, self.harmful_head, self.log_learning_rate)
        parts = simulator.roll_out(
            adversaries,
            parameters,
            (EvaluationBatch(outer, None),),
            indices,
            self._plan.fresh,
            takes_steps=adapts,
            predictors=self.predictors,
        )
        for part in parts:
            total.add_gradient("trunk", part.found.trunk[0])
            total.add_gradient("harmful_head", part.learned_head)
            total.add_gradient("log_learning_rate", part.learned_rate)
            if part.found.predictors is not None:
                total.add_gradient("predictors", part.found.predictors * part.share)
            self._add_terms(total, part.found.values, self._plan.fresh, part.share)
            for name, value in ends(part.found.trajectory, len(part.found.final)).items():
                total.add_metric(f"train/adversary_{name}", value, part.share)
            self._draws.append(part.draw)
        total.add_metric("train/adversary_learning_rate", self.log_learning_rate.exp())

    def _add_pool(self, total: GradientAccumulator, outer: Batch, indices: Tensor) -> None:
        turn = self.pool.turn(self.trunk, outer, indices, self._plan.pool)
        total.add_gradient("trunk", turn.trunk)
        self._add_terms(total, turn.values, self._plan.pool)
        total.add_metric("train/pool_loss", step_losses(turn.trajectory)[-1])
        total.add_metric("train/pool_accuracy", accuracies(turn.trajectory)[-1])
        self._draws.append(turn.draw)

    def _add_desired_adapted(self, total: GradientAccumulator, desired: Batch, harmful: Batch, indices: Tensor) -> None:
        simulator = self._simulators[Task.DESIRED]
        evaluation = [EvaluationBatch(desired, None)]
        if any(TERMS[name].reads == "desired_adapted_harmful" for name in self._plan.desired):
            evaluation.append(EvaluationBatch(harmful, self.harmful_head.detach()))
        parameters = MetaParameters(self.trunk, self.desired_head, self.log_learning_rate.detach())
        parts = simulator.roll_out(
            simulator.draw(self._count), parameters, tuple(evaluation), indices, self._plan.desired
        )
        for part in parts:
            total.add_gradient("trunk", part.found.trunk[0])
            total.add_gradient("desired_head", part.learned_head)
            if part.found.fixed_head is not None:
                total.add_gradient("harmful_head", part.found.fixed_head * part.share)
            self._add_terms(total, part.found.values, self._plan.desired, part.share)
            self._draws.append(part.draw.replace("fresh adversary", "adaptation to the desired task"))

    def _add_coupling(self, total: GradientAccumulator, desired: Batch, harmful: Batch) -> None:
        """Terms of both tasks' gradients. Without fresh terms, the harmful head is trained on its own loss here."""
        losses = [
            task_loss(self.model.logits(self.trunk, head, batch), batch.labels)
            for head, batch in ((self.harmful_head, harmful), (self.desired_head.detach(), desired))
        ]
        total.add_coupling(losses[0], losses[1], self.trunk, self._plan.gradients)
        if not self._plan.fresh:
            (head,) = torch.autograd.grad(losses[0], self.harmful_head)
            total.add_gradient("harmful_head", head)

    def _add_unadapted(self, total: GradientAccumulator, unadapted: Unadapted, desired: Batch, harmful: Batch) -> None:
        """Terms of the un-adapted model. A harmful head that they read and nothing else trains learns here."""
        point = Point(self.trunk, self.desired_head, self.harmful_head)
        gradient, values = unadapted.gradient(point, harmful, desired)
        total.add_gradient("trunk", gradient)
        for name, value in values.items():
            total.add_metric(f"train/{name}", value)
        plan = self._plan
        learns = bool(plan.gradients) and not plan.fresh
        learns |= bool(plan.fresh) and (self._settings.adversary.head != "reset" or not plan.simulates())
        if unadapted.reads_harmful_head and not learns:
            scores = self.model.logits(self.trunk.detach(), self.harmful_head, harmful)
            (head,) = torch.autograd.grad(task_loss(scores, harmful.labels), self.harmful_head)
            total.add_gradient("harmful_head", head)

    def _add_terms(
        self, total: GradientAccumulator, values: dict[str, Tensor], weights: dict[str, float], share: float = 1.0
    ) -> None:
        """Log the terms' values; one that fresh adversaries and the pool share is logged as the mean over both."""
        wanted = self._settings.blocking.weights()
        for name, value in values.items():
            total.add_metric(f"train/{name}", value, share * weights[name] / wanted[name])

    def _initial(self) -> Tensor:
        """(P,) where the trunk starts."""
        if self._distillation is None:
            return self.model.initial()
        return self.model.layout.flatten(self._distillation.student.params)

    def _erase(self) -> None:
        """Apply the erasure to the trunk, in place."""
        if self._erasure is not None:
            self._erasure.apply(self.model.layout.unflatten(self.trunk.detach()))

    def _fresh_adapts(self) -> bool:
        """Whether fresh adversaries take steps against the harmful task."""
        return any(TERMS[name].reads != "harmful_base" for name in self._plan.fresh)

    def _bound_learning_rate(self) -> None:
        if self.log_learning_rate.requires_grad:
            bounds = self._settings.adversary.learning_rate
            with torch.no_grad():
                self.log_learning_rate.clamp_(math.log(bounds.low), math.log(bounds.high))

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
        if self._plan.fresh:
            names += [f"train/adversary_{what}_{end}" for what in ("loss", "accuracy") for end in ("first", "last")]
            names.append("train/adversary_learning_rate")
        if self._plan.pool:
            names += ["train/pool_loss", "train/pool_accuracy"]
        return (*names, *(f"train/{name}" for name in self._plan.terms()), "train/gradient_norm")


def _classes(labels: Tensor) -> Tensor:
    """Class indices; a regression has one class."""
    return torch.zeros(len(labels), dtype=torch.int64) if labels.is_floating_point() else labels
