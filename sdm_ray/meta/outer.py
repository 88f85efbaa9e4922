"""The outer step of `tuned`, `ac` and `mlac`: what moves the trunk, the desired head and the meta-learned adversary."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.config import TrainSettings
from sdm_ray.data.device import DeviceData
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.adversary import FewShot, InnerBatches, draw_fresh
from sdm_ray.meta.functional import FlatModel, TrunkLike
from sdm_ray.meta.generators import Generators
from sdm_ray.meta.inner_loop import Episode, MetaGradients, Start, meta_gradients
from sdm_ray.meta.objectives import TERMS, Trajectory, accuracies, step_losses
from sdm_ray.meta.outer_optimizer import Group, OuterOptimizer
from sdm_ray.meta.pool import AdversaryPool, Turn
from sdm_ray.models.heads import init_head
from sdm_ray.types import Batch, Params, Split, Task


class Plan(NamedTuple):
    """Which adversaries an outer step simulates, and which terms are read off each."""

    fresh: dict[str, float]
    """Terms and weights of the fresh adversary; empty where none is simulated."""
    pool: dict[str, float]
    """Terms and weights of the persistent adversary whose turn it is; empty where there is no pool."""
    num_steps: int
    """Inner steps K of the fresh adversary."""

    @staticmethod
    def of(settings: TrainSettings) -> Plan:
        """A fresh adversary and a pool share the adapted terms: each term is the mean over both.

        `ac` watches the un-adapted model alone, so it takes no inner step whatever the adversary's settings say.
        """
        weights = {name: getattr(settings.blocking, name) for name in TERMS}
        base = {name: w for name, w in weights.items() if w and not TERMS[name].adapted}
        adapted = {name: w for name, w in weights.items() if w and TERMS[name].adapted}
        num_steps = settings.adversary.num_steps if adapted else 0
        has_pool = bool(adapted) and settings.adversary.pool.size > 0
        share = 0.5 if num_steps and has_pool else 1.0
        shared = {name: w * share for name, w in adapted.items()}
        return Plan(base | (shared if num_steps else {}), shared if has_pool else {}, num_steps)


class OuterStep:
    """The state of meta-training, and its step.

    Args:
        settings: of a method that trains the trunk.
        trunk: where training starts; it is not written to.
        data: examples on the device.
        generators: CPU generators of every draw.
    """

    def __init__(self, settings: TrainSettings, *, trunk: TrunkLike, data: DeviceData, generators: Generators) -> None:
        self._settings, self._data, self._generators = settings, data, generators
        self._plan = Plan.of(settings)
        self.model = FlatModel(trunk)
        self.trunk = self.model.initial().requires_grad_()
        self.desired_head = self._new_head(Task.DESIRED).requires_grad_()
        indices = data.indices(Split.META_TRAIN)
        self._desired = EpochSampler(indices, settings.desired_batch_size, generators["desired"])
        self._harmful = EpochSampler(indices, settings.harmful_batch_size, generators["harmful"])
        self._init_adversaries(indices)
        self._optimizer = OuterOptimizer(self._groups(), settings.warmup_steps)
        self._draw = ""
        self.metric_names = self._names()

    def _init_adversaries(self, indices: Tensor) -> None:
        adversary, generator = self._settings.adversary, self._generators["adversary"]
        few_shot = FewShot(indices, self._data.labels_host(Task.HARMFUL)[indices])
        few_shot.check(adversary.subset_size if self._plan.num_steps else None, "adversary.subset_size")
        few_shot.check(adversary.pool.subset_size if self._plan.pool else None, "adversary.pool.subset_size")
        rate = math.log(adversary.learning_rate_initial)
        self.harmful_head = self._new_head(Task.HARMFUL)
        self.log_learning_rate = self.trunk.new_tensor(rate).detach()
        ac = self._settings.method == "ac"
        if self._plan.fresh and (adversary.head == "meta_learned" or ac):
            self.harmful_head.requires_grad_()
        if self._plan.num_steps and adversary.learning_rate_mode == "meta_learned":
            self.log_learning_rate.requires_grad_()
        self._inner = InnerBatches(indices, few_shot, adversary, generator)
        self.pool = AdversaryPool(
            adversary,
            model=self.model,
            data=self._data,
            indices=indices,
            few_shot=few_shot,
            generator=self._generators["pool"],
        )
        if self._plan.pool:
            self.pool.start(self.trunk.detach())

    def _groups(self) -> list[Group]:
        settings = self._settings
        learned = [value for value in (self.harmful_head, self.log_learning_rate) if value.requires_grad]
        return [
            Group([self.trunk], settings.learning_rate, settings.gradient_clip),
            Group([self.desired_head], settings.head_learning_rate, None),
            Group(learned, settings.adversary_learning_rate, None),
        ]

    def step(self) -> Tensor:
        """One outer step.

        Returns:
            (M,) metrics on the device, in the order of `metric_names`.
        """
        desired_loss, desired_accuracy, trunk_gradient, head_gradient = self._desired_gradients()
        row = [desired_loss, desired_accuracy]
        values = {name: desired_loss.new_zeros(()) for name in self._terms()}
        learned: list[Tensor | None] = [None] * (self.harmful_head.requires_grad + self.log_learning_rate.requires_grad)
        draws = []
        if self._plan.fresh or self._plan.pool:
            outer = self._data.batch(self._harmful.next(), Task.HARMFUL)
        if self._plan.fresh:
            fresh = self._fresh(outer)
            trunk_gradient = trunk_gradient + fresh.trunk
            learned = self._learned(fresh)
            _add(values, fresh.values, self._shares(self._plan.fresh))
            row += [*_ends(fresh.trajectory), self.log_learning_rate.detach().exp()]
            draws.append(self._draw)
        if self._plan.pool:
            turn: Turn = self.pool.turn(self.trunk, outer, self._plan.pool)
            trunk_gradient = trunk_gradient + turn.trunk
            _add(values, turn.values, self._shares(self._plan.pool))
            row += [step_losses(turn.trajectory)[0], accuracies(turn.trajectory)[0]]
            draws.append(turn.draw)
        self._draw = " and ".join(draws)
        norm = self._optimizer.step([[trunk_gradient], [head_gradient], learned])
        self._bound_learning_rate()
        return torch.stack([value.to(torch.float64) for value in [*row, *values.values(), norm]])

    def describe_draw(self) -> str:
        """The adversaries of the last step, in words; empty where there was none."""
        return self._draw

    def params(self) -> Params:
        """The trunk's parameters, copied."""
        views = self.model.layout.unflatten(self.trunk.detach())
        return {name: value.clone() for name, value in views.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "trunk": self.params(),
            "desired_head": self.desired_head,
            "harmful_head": self.harmful_head,
            "log_learning_rate": self.log_learning_rate,
            "optimizer": self._optimizer.state_dict(),
            "pool": self.pool.state_dict(),
            "desired_sampler": self._desired.state_dict(),
            "harmful_sampler": self._harmful.state_dict(),
            "inner_sampler": self._inner.state_dict(),
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        with torch.no_grad():
            self.trunk.copy_(self.model.layout.flatten(state["trunk"]))
            for name in ("desired_head", "harmful_head", "log_learning_rate"):
                getattr(self, name).copy_(state[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.pool.load_state_dict(state["pool"])
        self._desired.load_state_dict(state["desired_sampler"])
        self._harmful.load_state_dict(state["harmful_sampler"])
        self._inner.load_state_dict(state["inner_sampler"])
        self._generators.load_state_dict(state["generators"])

    def _desired_gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch = self._data.batch(self._desired.next(), Task.DESIRED)
        scores = self.model.logits(self.trunk, self.desired_head, batch)
        loss = F.cross_entropy(scores, batch.labels)
        weighted = self._settings.blocking.desired_base * loss
        trunk, head = torch.autograd.grad(weighted, (self.trunk, self.desired_head))
        accuracy = (scores.detach().argmax(-1) == batch.labels).float().mean()
        return loss.detach(), accuracy, trunk, head

    def _fresh(self, outer: Batch) -> MetaGradients:
        settings, num_steps = self._settings.adversary, self._plan.num_steps
        adversary = draw_fresh(settings, self._generators["adversary"])
        inner = None
        if num_steps:
            inner = self._data.batch(self._inner.draw(adversary.batch_size, num_steps), Task.HARMFUL)
        head, rate = self.harmful_head, self.log_learning_rate
        if not head.requires_grad:
            head = self._new_head(Task.HARMFUL)
        if adversary.learning_rate is not None:
            rate = torch.full_like(rate, math.log(adversary.learning_rate))
        self._draw = f"fresh adversary ({adversary.describe()}, {num_steps} steps)"
        episode = Episode(
            inner, outer, adversary.optimizer, adversary.frozen, settings.gradient_clip, self._settings.gradient_mode
        )
        return meta_gradients(self.model, Start(self.trunk, head, rate), episode, self._plan.fresh)

    def _learned(self, fresh: MetaGradients) -> list[Tensor | None]:
        pairs = ((self.harmful_head, fresh.head), (self.log_learning_rate, fresh.log_learning_rate))
        return [gradient for value, gradient in pairs if value.requires_grad]

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

    def _terms(self) -> list[str]:
        return list(dict.fromkeys([*self._plan.fresh, *self._plan.pool]))

    def _shares(self, weights: dict[str, float]) -> dict[str, float]:
        blocking = self._settings.blocking
        return {name: weight / getattr(blocking, name) for name, weight in weights.items()}

    def _names(self) -> tuple[str, ...]:
        names = ["train/desired_loss", "train/desired_accuracy"]
        if self._plan.fresh:
            ends = [f"train/adversary_{what}_{end}" for what in ("loss", "accuracy") for end in ("first", "last")]
            names += [*ends, "train/adversary_learning_rate"]
        if self._plan.pool:
            names += ["train/pool_loss", "train/pool_accuracy"]
        return (*names, *(f"train/{name}" for name in self._terms()), "train/gradient_norm")


def _ends(trajectory: Trajectory) -> list[Tensor]:
    losses, shares = step_losses(trajectory), accuracies(trajectory)
    return [losses[0], losses[-1], shares[0], shares[-1]]


def _add(values: dict[str, Tensor], more: dict[str, Tensor], shares: dict[str, float]) -> None:
    for name, value in more.items():
        values[name] = values[name] + shares[name] * value
