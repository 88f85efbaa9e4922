"""The attacked model and its data, shared by the parts of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdm_ray.attack.engine.scoring import ScoringSet, validation_sample
from sdm_ray.attack.engine.stack import plan_device
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.models.interface import TrunkLike

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


@dataclass(frozen=True)
class AttackTarget:
    """One released model and the data of the attack on it."""

    trunk: TrunkLike
    params: Params
    """Released weights."""
    data: AttackDataset
    settings: AttackSettings
    task: Task
    """The task whose labels the attackers learn."""
    knowledge: Knowledge
    pool: Tensor
    """(M,) on the host; indices of attacker-train, from which attackers get their labelled examples."""
    pool_labels: Tensor
    """(M,) host; their labels."""
    val: ScoringSet
    test: ScoringSet

    @classmethod
    def of(
        cls,
        trunk: TrunkLike,
        params: Params,
        data: AttackDataset,
        settings: AttackSettings,
        task: Task,
        knowledge: Knowledge | None = None,
    ) -> AttackTarget:
        """Sample the examples to score; the arguments are those of `Executor`."""
        candidates, pool = data.indices(Split.ATTACKER_VAL), data.indices(Split.ATTACKER_TRAIN)
        labels = data.labels_host(task)
        generator = seeded(settings.seed, "validation sample")
        sample = validation_sample(
            candidates, labels[candidates], settings.max_validation_examples, data.num_classes(task), generator
        )
        return cls(
            trunk=trunk,
            params={name: value.detach() for name, value in params.items()},
            data=data,
            settings=settings,
            task=task,
            knowledge=knowledge or Knowledge(),
            pool=pool,
            pool_labels=labels[pool],
            val=ScoringSet.of(data, sample, task),
            test=ScoringSet.of(data, data.indices(Split.TEST), task),
        )

    @property
    def num_classes(self) -> int:
        """C, the number of classes of the task."""
        return self.data.num_classes(self.task)

    @property
    def embedding(self) -> str | None:
        """Name of the token embedding, or None."""
        return self.trunk.embedding_name

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return plan_device(self.params)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(iter(self.params.values())).dtype

    def scored(self, split: Split) -> ScoringSet:
        """The examples of attacker-validation or test on which attackers are scored."""
        return {Split.ATTACKER_VAL: self.val, Split.TEST: self.test}[split]
