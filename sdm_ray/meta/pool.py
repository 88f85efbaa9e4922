"""Persistent adversaries: a long horizon at the price of one step.

A short unroll soon finds nothing left to block, while an attacker of many more steps still recovers the task. So a
pool of adversaries lives on across outer steps. Each keeps its displacement `delta` from the current weights, its
head, its optimiser's state and its own few-shot subset. In each outer step the one whose turn it is trains for a step
or two at `theta + delta`; then the blocking loss is evaluated there on the outer batch, and its (first-order)
gradient moves `theta`. At the end of its life it is drawn anew. Compare persistent chains in contrastive divergence
(Tieleman, ICML 2008) and replay in free adversarial training (Shafahi et al., arXiv 1904.12843).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.config import AdversarySettings
from sdm_ray.data.device import DeviceData
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.adversary import Adversary, FewShot, draw_persistent, whole_number
from sdm_ray.meta.functional import FlatModel
from sdm_ray.meta.inner_loop import FROZEN_RATE_FACTOR
from sdm_ray.meta.objectives import Trajectory, blocking_loss
from sdm_ray.meta.optim import clip_by_norm, make_optimizer
from sdm_ray.models.heads import init_head, logits
from sdm_ray.types import Batch, Task


class Turn(NamedTuple):
    """What a pool's turn asks of the outer step."""

    trunk: Tensor
    """(P,) first-order gradient of the blocking loss."""
    values: dict[str, Tensor]
    """Blocking terms by name."""
    trajectory: Trajectory
    """Detached, of a single step."""
    draw: str
    """The adversary, in words."""


@dataclass
class Member:
    """One persistent adversary."""

    adversary: Adversary
    lifespan: int
    """Steps of its own after which it is drawn anew."""
    age: int
    """Steps done."""
    subset: Tensor | None
    """Host indices of its labelled examples; None for all of meta-training."""
    sampler: EpochSampler
    delta: Tensor | None
    """(P,) displacement from the current weights; None where the trunk is frozen."""
    head: Tensor
    """(C, D)."""
    state: Any
    """State of its optimiser over (delta, head), or (head,) where the trunk is frozen."""

    def describe(self) -> str:
        """One phrase for error messages."""
        return f"persistent adversary ({self.adversary.describe()}, step {self.age} of {self.lifespan})"


class AdversaryPool:
    """`settings.pool.size` persistent adversaries that take turns.

    Args:
        settings: the adversary distribution.
        model: the trunk as a function.
        data: examples on the device.
        indices: (N,) host indices of meta-training.
        few_shot: draws the subsets.
        generator: CPU generator of all draws.
    """

    def __init__(
        self,
        settings: AdversarySettings,
        *,
        model: FlatModel,
        data: DeviceData,
        indices: Tensor,
        few_shot: FewShot,
        generator: torch.Generator,
    ) -> None:
        self._settings, self._model, self._data = settings, model, data
        self._indices, self._few_shot, self._generator = indices, few_shot, generator
        self._cursor = 0
        self.members: list[Member] = []

    def start(self, trunk: Tensor) -> None:
        """Draw every member, at rest at the trunk's parameters (P,)."""
        self.members = [self._born(trunk) for _ in range(self._settings.pool.size)]

    def turn(self, trunk: Tensor, outer: Batch, weights: dict[str, float]) -> Turn:
        """Train the next member a little and take the blocking loss's gradient where it then stands.

        Args:
            trunk: (P,) current weights.
            outer: (B, L) outer harmful batch.
            weights: blocking terms and their weights.
        """
        trunk = trunk.detach()
        member = self.members[self._cursor]
        if member.age >= member.lifespan:
            member = self.members[self._cursor] = self._born(trunk)
        self._cursor = (self._cursor + 1) % len(self.members)
        for _ in range(min(self._settings.pool.steps_per_turn, member.lifespan - member.age)):
            self._train(member, trunk)
        point = (trunk if member.delta is None else trunk + member.delta).detach().requires_grad_()
        trajectory = Trajectory(self._model.logits(point, member.head, outer).unsqueeze(0), outer.labels)
        blocking, values = blocking_loss(trajectory, weights)
        (gradient,) = torch.autograd.grad(blocking, point)
        seen = Trajectory(trajectory.logits.detach(), outer.labels)
        return Turn(gradient, values, seen, member.describe())

    def memory_bytes(self) -> int:
        """Bytes that the members' tensors take on the device."""
        tensors = [value for member in self.members for value in _tensors(member)]
        return sum(value.numel() * value.element_size() for value in tensors)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next turn depends on, the generator apart."""
        return {"cursor": self._cursor, "members": [_member_state(member) for member in self.members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._cursor = state["cursor"]
        self.members = [self._restored(values) for values in state["members"]]

    def _born(self, trunk: Tensor) -> Member:
        pool, generator = self._settings.pool, self._generator
        adversary = draw_persistent(self._settings, generator)
        lifespan = whole_number(1, pool.lifespan_steps, generator)
        subset = None if pool.subset_size is None else self._few_shot.draw(pool.subset_size, generator)
        head = init_head(
            self._model.feature_dim,
            self._data.num_classes(Task.HARMFUL),
            generator,
            device=trunk.device,
            dtype=trunk.dtype,
        )
        delta = None if adversary.frozen else torch.zeros_like(trunk)
        params = (head,) if delta is None else (delta, head)
        state = make_optimizer(adversary.optimizer).init(params)
        return Member(adversary, lifespan, 0, subset, self._sampler(adversary, subset), delta, head, state)

    def _sampler(self, adversary: Adversary, subset: Tensor | None) -> EpochSampler:
        indices = self._indices if subset is None else subset
        return EpochSampler(indices, min(adversary.batch_size, len(indices)), self._generator)

    def _train(self, member: Member, trunk: Tensor) -> None:
        adversary = member.adversary
        optimizer = make_optimizer(adversary.optimizer)
        assert adversary.learning_rate is not None
        batch = self._data.batch(member.sampler.next(), Task.HARMFUL)
        head = member.head.detach().requires_grad_()
        clip = self._settings.gradient_clip
        if member.delta is None:
            with torch.no_grad():
                features = self._model.features(trunk, batch)
            loss = F.cross_entropy(logits(features, head), batch.labels)
            grads = clip_by_norm(torch.autograd.grad(loss, (head,)), clip)
            rate = adversary.learning_rate * FROZEN_RATE_FACTOR
            (member.head,), member.state = optimizer.update(grads, member.state, (member.head,), rate)
        else:
            point = (trunk + member.delta).requires_grad_()
            loss = F.cross_entropy(self._model.logits(point, head, batch), batch.labels)
            grads = clip_by_norm(torch.autograd.grad(loss, (point, head)), clip)
            params = (member.delta, member.head)
            (member.delta, member.head), member.state = optimizer.update(
                grads, member.state, params, adversary.learning_rate
            )
        member.age += 1

    def _restored(self, values: dict[str, Any]) -> Member:
        adversary = Adversary(**values["adversary"])
        subset = values["subset"]
        sampler = self._sampler(adversary, subset)
        sampler.load_state_dict(values["sampler"])
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in values["state"].items()}
        state = make_optimizer(adversary.optimizer).state(**fields)
        return Member(
            adversary, values["lifespan"], values["age"], subset, sampler, values["delta"], values["head"], state
        )


def _member_state(member: Member) -> dict[str, Any]:
    return {
        "adversary": asdict(member.adversary),
        "lifespan": member.lifespan,
        "age": member.age,
        "subset": member.subset,
        "sampler": member.sampler.state_dict(),
        "delta": member.delta,
        "head": member.head,
        "state": {name: list(v) if isinstance(v, tuple) else v for name, v in member.state._asdict().items()},
    }


def _tensors(member: Member) -> list[Tensor]:
    moments = [value for field in member.state if isinstance(field, tuple) for value in field]
    return [value for value in (member.delta, member.head, *moments) if value is not None]
