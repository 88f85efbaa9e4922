"""Samples each attacker's examples, batches and initial head, all of them from seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdm_ray.attack.engine.draws import batch_order, choose_subset, head_generator, order_generator, subset_generator
from sdm_ray.attack.engine.plan import Plan
from sdm_ray.attack.engine.target import AttackTarget
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.edits import PREPARING_BATCH, PREPARING_RATE
from sdm_ray.core.types import Task
from sdm_ray.data.interface import labelled
from sdm_ray.models.heads import init_head


class Planner:
    """Plans of the attackers of one model.

    Args:
        target: what is attacked.
        width: width of the pooled features.
    """

    def __init__(self, target: AttackTarget, *, width: int) -> None:
        self._target, self._settings, self._width = target, target.settings, width

    def plan(self, stack: Sequence[Attacker], seconds: float | None = None) -> Plan:
        """Sample the training data of a stack of attackers; training is stopped with an error after `seconds`."""
        seed = self._settings.seed
        return Plan(
            attackers=tuple(stack),
            subsets=tuple(self.subset(attacker) for attacker in stack),
            orders=tuple(
                batch_order(a.num_examples, a.batch_size, a.num_steps, order_generator(seed, a)) for a in stack
            ),
            heads=torch.stack([self._head(attacker) for attacker in stack]),
            evaluated_steps=tuple(self._evaluated_steps(attacker) for attacker in stack),
            deadline=None if seconds is None else time.perf_counter() + seconds,
        )

    def desired(self, num_steps: int) -> Plan:
        """Plan of the initial training of `benign_first` on desired labels: Adam, from a new head."""
        data, seed = self._target.data, self._settings.seed
        pool = labelled(data, self._target.pool, Task.DESIRED)
        attacker = Attacker(
            family="benign_first",
            num_examples=len(pool),
            learning_rate=PREPARING_RATE,
            num_steps=num_steps,
            batch_size=min(PREPARING_BATCH, len(pool)),
        )
        order = batch_order(attacker.num_examples, attacker.batch_size, num_steps, order_generator(seed, attacker))
        return Plan((attacker,), (pool,), (order,), self._fresh_head(attacker, data.num_classes(Task.DESIRED))[None])

    def subset(self, attacker: Attacker) -> Tensor:
        """(n,) indices of an attacker's labelled examples, from attacker-train."""
        return choose_subset(
            self._target.pool,
            self._target.pool_labels,
            attacker.num_examples,
            self._target.num_classes,
            balanced=self._settings.class_balanced,
            generator=subset_generator(self._settings.seed, attacker),
        )

    def _head(self, attacker: Attacker) -> Tensor:
        released, dtype = self._target.knowledge.own_head, self._target.dtype
        if attacker.own_head and released is not None:
            return released.detach().cpu().to(dtype)
        if attacker.pooling == "maximum":  # the features are the classes' scores
            return torch.eye(self._target.num_classes, dtype=dtype)
        return self._fresh_head(attacker, self._target.num_classes)

    def _fresh_head(self, attacker: Attacker, num_classes: int) -> Tensor:
        generator = head_generator(self._settings.seed, attacker)
        return init_head(self._width, num_classes, generator).to(self._target.dtype)

    def _evaluated_steps(self, attacker: Attacker) -> tuple[int, ...]:
        """Numbers of steps, evenly spaced on a log scale, at which a re-run is scored before its end."""
        count, last = self._settings.num_curve_points, attacker.num_steps
        if attacker.phase != "rerun" or attacker.trains == "probe" or count < 2:
            return ()
        spaced = np.geomspace(1, max(last, 1), count).round().astype(int)
        return tuple(sorted({int(step) for step in spaced if step < last}))
