"""The adversaries that an outer step simulates: how they are set up, and what they add to its gradients and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Batch, Task
from sdm_ray.data.interface import TrainingDataset, labelled
from sdm_ray.meta.adversaries.benign import BenignFirst
from sdm_ray.meta.adversaries.distribution import HeadKinds
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.fresh import MetaParameters, Simulator
from sdm_ray.meta.adversaries.pool import AdversaryPool
from sdm_ray.meta.adversaries.starts import Starts
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.episode import Execution
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.problems import EvaluationBatch
from sdm_ray.meta.objectives import accuracies, step_losses
from sdm_ray.meta.outer.accumulator import GradientAccumulator, ends
from sdm_ray.meta.outer.learned import LearnedParameters
from sdm_ray.meta.outer.plan import Plan
from sdm_ray.meta.outer.trajectory import PROBED_EXAMPLES, mean_trajectory, probe_settings
from sdm_ray.models.encoder import fresh_params
from sdm_ray.models.trunk import Trunk


class Drawn(NamedTuple):
    """A batch of an outer step."""

    batch: Batch
    """(B, ·) on the device."""
    indices: Tensor
    """(B,) its examples, on the host."""


class SimulatedAdversaries:
    """Fresh adversaries of both tasks, and the pool of persistent ones.

    Args:
        settings: the training.
        plan: what the outer step simulates.
        model: the trunk as a function.
        data: examples on the device.
        generators: CPU generators of every draw.
        indices: (N,) training examples, on the host.
        execution: how episodes are computed.

    Raises:
        UsageError: for few-shot subsets that exceed the data, or starts or heads that the trunk does not allow.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        plan: Plan,
        model: FlatModel,
        data: TrainingDataset,
        generators: Generators,
        indices: Tensor,
        execution: Execution,
    ) -> None:
        self._settings, self._plan, self._model, self._data = settings, plan, model, data
        self._generators, self._indices, self._execution = generators, indices, execution
        self._of_task = {task: labelled(data, indices, task) for task in Task}
        self._few_shots = {
            task: FewShot(owned, _classes(data.labels_host(task)[owned])) for task, owned in self._of_task.items()
        }
        self._check_subsets()
        fresh_starts = self._starts("starts", plan.fresh)
        pool_starts = self._starts("pool_starts", plan.pool)
        self._all_starts = [starts for starts in (fresh_starts, pool_starts) if starts is not None]
        self._simulators = {
            Task.HARMFUL: self._simulator(
                settings,
                Task.HARMFUL,
                generators["adversary"],
                starts=fresh_starts,
                head_kinds=self._head_kinds("head_kinds", plan.fresh if plan.fresh_adapts() else {}),
            ),
            Task.DESIRED: self._simulator(settings, Task.DESIRED, generators["desired_adversary"]),
        }
        self.pool = AdversaryPool(
            settings,
            few_shot=self._few_shots[Task.HARMFUL],
            generator=generators["pool"],
            model=model,
            data=data,
            indices=indices,
            execution=execution,
            starts=pool_starts,
            head_kinds=self._head_kinds("pool_head_kinds", plan.pool),
        )
        self.draws: list[str] = []
        """Descriptions of the adversaries that were rolled out in this step."""
        self.num_texts = 0
        """Texts that they trained on in this step."""

    def begin_step(self, trunk: Tensor) -> None:
        """Forget what was rolled out in the last step; before the first, sample the pool around the trunk (P,)."""
        self.draws.clear()
        self.num_texts = 0
        if self._plan.pool and not self.pool.members:
            self.pool.start(trunk)

    def end_step(self) -> None:
        """Count the texts that starts of this step trained on."""
        self.num_texts += sum(starts.take_texts() for starts in self._all_starts)

    def add_fresh(
        self, total: GradientAccumulator, trunk: Tensor, learned: LearnedParameters, harmful: Drawn, step: int
    ) -> None:
        """Add what fresh adversaries of the harmful task give at the outer step number `step`."""
        simulator, adapts = self._simulators[Task.HARMFUL], self._plan.fresh_adapts()
        drawn = simulator.draw(step, takes_steps=adapts)
        self.num_texts += _texts_of(drawn) if adapts else 0
        parts = simulator.roll_out(
            drawn,
            learned.with_trunk(trunk),
            (EvaluationBatch(harmful.batch, None),),
            harmful.indices,
            self._plan.fresh,
            takes_steps=adapts,
            predictors=learned.predictors,
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
            self.draws.append(part.draw)
        total.add_metric("train/adversary_learning_rate", learned.log_learning_rate.exp())

    def add_pool(self, total: GradientAccumulator, trunk: Tensor, harmful: Drawn) -> None:
        """Add what the next turn of the pool gives."""
        turn = self.pool.turn(trunk, harmful.batch, harmful.indices, self._plan.pool)
        self.num_texts += turn.num_texts
        total.add_gradient("trunk", turn.trunk)
        self._add_terms(total, turn.values, self._plan.pool)
        total.add_metric("train/pool_loss", step_losses(turn.trajectory)[-1])
        total.add_metric("train/pool_accuracy", accuracies(turn.trajectory)[-1])
        self.draws.append(turn.draw)

    def add_desired(
        self,
        total: GradientAccumulator,
        parameters: MetaParameters,
        harmful_head: Tensor,
        desired: Drawn,
        harmful: Drawn,
        step: int,
    ) -> None:
        """Add what adversaries give that adapt to the desired task; `harmful_head` (C, D) does not adapt with them."""
        simulator = self._simulators[Task.DESIRED]
        evaluation = [EvaluationBatch(desired.batch, None)]
        if self._plan.reads_harmful_after_desired():
            evaluation.append(EvaluationBatch(harmful.batch, harmful_head))
        indices = torch.cat([desired.indices, harmful.indices])
        drawn = simulator.draw(step)
        self.num_texts += _texts_of(drawn)
        parts = simulator.roll_out(drawn, parameters, tuple(evaluation), indices, self._plan.desired)
        for part in parts:
            total.add_gradient("trunk", part.found.trunk[0])
            total.add_gradient("desired_head", part.learned_head)
            if part.found.fixed_head is not None:
                total.add_gradient("harmful_head", part.found.fixed_head * part.share)
            self._add_terms(total, part.found.values, self._plan.desired, part.share)
            self.draws.append(part.draw.replace("fresh adversary", "adaptation to the desired task"))

    def probe(self, parameters: MetaParameters) -> dict[int, float] | None:
        """Harmful loss by inner step from these parameters, averaged over a few adversaries (`OuterStep.probe`)."""
        if not self._plan.simulates():
            return None
        settings = probe_settings(self._settings, fresh=self._plan.fresh_adapts())
        simulator = self._simulator(settings, Task.HARMFUL, torch.Generator().manual_seed(0))
        indices = self._indices[:PROBED_EXAMPLES]
        return mean_trajectory(simulator, parameters, self._data.batch(indices, Task.HARMFUL), indices)

    def metric_names(self) -> list[str]:
        """Metrics of every step besides the blocking terms."""
        names = []
        if self._plan.fresh:
            names += [f"train/adversary_{what}_{end}" for what in ("loss", "accuracy") for end in ("first", "last")]
            names.append("train/adversary_learning_rate")
        if self._plan.pool:
            names += ["train/pool_loss", "train/pool_accuracy"]
        return names

    def state_dict(self) -> dict[str, Any]:
        """State of the pool and of the samplers; that of the generators is the outer step's."""
        return {
            "pool": self.pool.state_dict(),
            "inner_samplers": {str(task): value.state_dict() for task, value in self._simulators.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; other entries are ignored."""
        self.pool.load_state_dict(state["pool"])
        for task, simulator in self._simulators.items():
            simulator.load_state_dict(state["inner_samplers"][str(task)])

    def _check_subsets(self) -> None:
        """Refuse few-shot subsets of simulated adversaries that exceed the examples."""
        adversary, few_shot = self._settings.adversary, self._few_shots[Task.HARMFUL]
        few_shot.check(adversary.subset_size if self._plan.num_steps else None, "adversary.subset_size")
        few_shot.check(adversary.pool.subset_size if self._plan.pool else None, "adversary.pool.subset_size")

    def _starts(self, generator: str, terms: dict[str, float]) -> Starts | None:
        """What adversaries that serve these terms start from; None where all start from the current weights."""
        settings, trunk = self._settings.adversary.starts, self._model.trunk
        if not (settings.edits and terms):
            return None
        return Starts(
            settings,
            model=self._model,
            generator=self._generators[generator],
            public=self._model.initial() if settings.interpolated else None,
            redraw=partial(fresh_params, trunk) if isinstance(trunk, Trunk) else None,
            benign=self._benign() if settings.benign_first else None,
        )

    def _benign(self) -> BenignFirst:
        return BenignFirst(
            self._settings, model=self._model, data=self._data, indices=self._indices, execution=self._execution
        )

    def _head_kinds(self, generator: str, terms: dict[str, float]) -> HeadKinds | None:
        """What heads of adversaries that serve these terms read; None where all read the pooled features."""
        settings = self._settings.adversary
        if not terms or set(settings.head_kinds) == {"pooled"}:
            return None
        return HeadKinds(settings, trunk=self._model.trunk, generator=self._generators[generator])

    def _simulator(
        self,
        settings: TrainSettings,
        task: Task,
        generator: torch.Generator,
        *,
        starts: Starts | None = None,
        head_kinds: HeadKinds | None = None,
    ) -> Simulator:
        return Simulator(
            settings,
            model=self._model,
            data=self._data,
            task=task,
            indices=self._of_task[task],
            few_shot=self._few_shots[task],
            generator=generator,
            execution=self._execution,
            starts=starts,
            head_kinds=head_kinds,
        )

    def _add_terms(
        self, total: GradientAccumulator, values: dict[str, Tensor], weights: dict[str, float], share: float = 1.0
    ) -> None:
        """Log the terms' values; one that fresh adversaries and the pool share is logged as the mean over both."""
        wanted = self._settings.blocking.weights()
        for name, value in values.items():
            total.add_metric(f"train/{name}", value, share * weights[name] / wanted[name])


def _texts_of(adversaries: Sequence[Adversary]) -> int:
    """Texts of the inner batches of adversaries."""
    return sum(one.num_steps * one.batch_size for one in adversaries)


def _classes(labels: Tensor) -> Tensor:
    """Class indices; a regression has one class."""
    return torch.zeros(len(labels), dtype=torch.int64) if labels.is_floating_point() else labels
