"""Persistent adversaries: adversaries of many inner steps at the cost of a few steps per outer step.

Training against short unrolls soon blocks them, while an attacker with many more steps still recovers the task. A pool
therefore keeps adversaries across outer steps. Each has a displacement `delta` from the current weights `theta`, a
head, an optimiser state and a few-shot subset. The members take turns, one in each outer step: the member trains for
one or more steps at `theta + delta`, the blocking loss is evaluated there on the outer batch, and its gradient updates
`theta`. The gradient is first-order at the end of the turn, or second-order through the turn's steps. A member is
replaced by a newly sampled one at the end of its lifespan. Related: persistent chains in contrastive divergence
(Tieleman, ICML 2008), replay in free adversarial training (Shafahi et al., arXiv 1904.12843).

A member with a subset never changes the embedding rows of tokens outside it, because its optimiser is element-wise and
starts with zero moments; it stores only the rows of its own tokens. A member with weight decay, which changes every
row, or without a subset stores all rows.

A member that started from edited weights (`adversary.starts`) trains at `factor * theta + shift + delta`; factor and
shift of the edit were computed from `theta` when the member was sampled, and it stores them for all rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.types import Batch, Task
from sdm_ray.data.interface import TrainingDataset
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.adversaries.distribution import HeadKinds, draw_persistent, whole_number
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.starts import StartMap, Starts
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.episode import Episode, Execution, MetaGradients, Start
from sdm_ray.meta.inner.flat_model import FlatModel, Rows
from sdm_ray.meta.inner.head_reader import head_rows
from sdm_ray.meta.inner.loop import meta_gradients
from sdm_ray.meta.inner.optim import OptimizerState, make_optimizer
from sdm_ray.meta.inner.problems import Data, EvaluationBatch
from sdm_ray.meta.objectives import Trajectory
from sdm_ray.models.heads import init_head

DECAYING = ("adamw",)
"""Optimisers that move parameters whose gradient is zero."""


class Turn(NamedTuple):
    """Meta-gradients of one turn of the pool."""

    trunk: Tensor
    """(P,) gradient of the blocking loss."""
    values: dict[str, Tensor]
    """Blocking terms by name."""
    trajectory: Trajectory
    """Outputs at the turn's evaluated steps, detached."""
    draw: str
    """Description of the adversary."""
    num_texts: int
    """Texts that it trained on."""


@dataclass
class Member:
    """One persistent adversary."""

    adversary: Adversary
    lifespan: int
    """Number of its steps after which it is replaced."""
    age: int
    """Number of its steps so far."""
    subset: Tensor | None
    """Its labelled examples, as indices on the host; None for the whole meta-training split."""
    sampler: EpochSampler
    rows: Rows | None
    """Rows of the token embedding that it stores; None for all."""
    delta: Tensor | None
    """(P',) displacement from the current weights, in the layout of its rows; None if the trunk is frozen."""
    head: Tensor
    """(C, D); (C + 1, D) with the query as last row for `attention`."""
    state: OptimizerState
    """Optimiser state of (delta, head) as one vector (1, N), or of the head alone if the trunk is frozen."""
    edit: StartMap | None = None
    """What is applied to the current weights first; None where it did not start from edited weights."""

    def describe(self) -> str:
        """One phrase for error messages."""
        return f"persistent adversary ({self.adversary.describe()}, step {self.age} of {self.lifespan})"


class AdversaryPool:
    """`settings.adversary.pool.size` persistent adversaries that take turns.

    Args:
        settings: the training settings.
        model: the trunk as a function of its parameters.
        data: examples on the device.
        indices: (N,) meta-training examples, on the host.
        few_shot: draws the subsets.
        generator: CPU generator of all draws.
        execution: how turns are computed: memory, autocast, compilation.
        starts: samples what new members start from; None starts all from the current weights.
        head_kinds: samples what their heads read; None gives all of them heads on the pooled features.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        model: FlatModel,
        data: TrainingDataset,
        indices: Tensor,
        few_shot: FewShot,
        generator: torch.Generator,
        execution: Execution | None = None,
        starts: Starts | None = None,
        head_kinds: HeadKinds | None = None,
    ) -> None:
        self._settings, self._compiled = settings.adversary, settings.compile
        self._model, self._data, self._execution = model, data, execution
        self._indices, self._few_shot, self._generator = indices, few_shot, generator
        self._starts, self._head_kinds = starts, head_kinds
        self._mode = settings.gradient_mode if settings.adversary.pool.second_order else "first_order"
        self._truncation_steps = settings.truncation_steps
        self._cursor = 0
        self.members: list[Member] = []

    def start(self, trunk: Tensor) -> None:
        """Sample every member; each starts at the trunk's parameters (P,), or at an edit of them."""
        self.members = [self._sample_member(trunk) for _ in range(self._settings.pool.size)]

    def turn(self, trunk: Tensor, outer: Batch, outer_indices: Tensor, weights: dict[str, float]) -> Turn:
        """Train the next member and compute the blocking loss's gradient, at the turn's end or through its steps.

        Args:
            trunk: (P,) current weights.
            outer: (B, ·) outer harmful batch.
            outer_indices: (B,) its examples, on the host.
            weights: weight by blocking term.
        """
        trunk = trunk.detach()
        member = self.members[self._cursor]
        if member.age >= member.lifespan:
            member = self.members[self._cursor] = self._sample_member(trunk)
        self._cursor = (self._cursor + 1) % len(self.members)
        num_steps = min(self._settings.pool.steps_per_turn, member.lifespan - member.age)
        drawn = [member.sampler.next()[None] for _ in range(num_steps)]
        inner = tuple(self._data.batch(indices, Task.HARMFUL, coarse=self._compiled) for indices in drawn)
        rows = self._episode_rows(member, outer_indices)
        second_order = self._settings.pool.second_order
        episode = Episode(
            data=Data(inner, (EvaluationBatch(outer, None),)),
            adversary=member.adversary,
            evaluated_steps=tuple(range(num_steps + 1)) if second_order else (num_steps,),
            mode=self._mode,
            truncation_steps=self._truncation_steps,
            gradient_clip=self._settings.gradient_clip,
            rows=rows,
        )
        found = meta_gradients(
            self._model,
            self._start_of(member, trunk, rows),
            episode,
            weights,
            execution=self._execution,
        )
        self._store(member, trunk, rows, found)
        member.age += num_steps
        return Turn(
            found.trunk[0], found.values, found.trajectory, member.describe(), sum(one.numel() for one in drawn)
        )

    def state_dict(self) -> dict[str, Any]:
        """All state that later turns depend on, except the generator's."""
        return {"cursor": self._cursor, "members": [_member_state(member) for member in self.members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._cursor = state["cursor"]
        self.members = [self._restored(values) for values in state["members"]]

    def _start_of(self, member: Member, trunk: Tensor, rows: Rows | None) -> Start:
        assert member.adversary.learning_rate is not None
        rate = trunk.new_full((1,), math.log(member.adversary.learning_rate))
        displacement, state = member.delta, member.state
        if member.rows is not None and displacement is not None:
            assert rows is not None
            displacement = self._model.regroup(displacement, member.rows, rows)
            moments = tuple(self._model.regroup(value, member.rows, rows) for value in state.moments)
            state = OptimizerState(state.num_updates, moments)
        factor = None
        if (edit := self._edit_of(member, rows)) is not None:
            displacement = edit.shift if displacement is None else edit.shift + displacement
            factor = edit.factor[None]
        lead = None if displacement is None else displacement[None]
        return Start(trunk[None], member.head[None], rate, lead, state, factor)

    def _edit_of(self, member: Member, rows: Rows | None) -> StartMap | None:
        """The member's edit in the layout of some rows."""
        edit = member.edit
        if edit is None or rows is None:
            return edit
        return StartMap(self._model.compress(edit.factor, rows), self._model.compress(edit.shift, rows))

    def _store(self, member: Member, trunk: Tensor, rows: Rows | None, found: MetaGradients) -> None:
        """Set the member to its state at the end of the turn."""
        size = member.head.numel()
        final, state = found.final, found.final_state
        member.head = final[0, -size:].view_as(member.head).clone()
        if member.delta is not None:
            base = trunk if rows is None else self._model.compress(trunk, rows)
            if (edit := self._edit_of(member, rows)) is not None:
                base = base * edit.factor + edit.shift
            delta, moments = final[0, :-size] - base, state.moments
            if member.rows is not None:
                assert rows is not None
                delta = self._model.regroup(delta, rows, member.rows)
                moments = tuple(self._model.regroup(value, rows, member.rows) for value in moments)
            member.delta, state = delta, OptimizerState(state.num_updates, moments)
        member.state = state

    def _episode_rows(self, member: Member, outer_indices: Tensor) -> Rows | None:
        if member.rows is None:
            return None
        return self._rows(torch.cat([member.rows.held, self._data.occurring_tokens(outer_indices)]))

    def _rows(self, tokens: Tensor) -> Rows:
        return self._model.plan_rows(tokens, self._data.device, coarse=self._compiled)

    def _member_rows(self, adversary: Adversary, subset: Tensor | None) -> Rows | None:
        trunk = self._model.trunk
        if subset is None or adversary.adaptation == "head" or adversary.optimizer in DECAYING:
            return None
        return None if trunk.embedding_name is None else self._rows(self._data.occurring_tokens(subset))

    def _sample_member(self, trunk: Tensor) -> Member:
        pool, generator = self._settings.pool, self._generator
        adversary = draw_persistent(self._settings, generator)
        if self._head_kinds is not None:
            adversary = self._head_kinds.draw(adversary)
        if self._starts is not None:
            adversary = self._starts.draw(adversary)
        lifespan = whole_number(1, pool.lifespan_steps, generator)
        subset = None if pool.subset_size is None else self._few_shot.draw(pool.subset_size, generator)
        rows = self._member_rows(adversary, subset)
        head = init_head(
            self._model.feature_dim,
            head_rows(adversary.head_kind, self._data.num_classes(Task.HARMFUL)),
            generator,
            device=trunk.device,
            dtype=trunk.dtype,
        )
        delta = None
        if adversary.adaptation != "head":
            layout = self._model.layout if rows is None else self._model.restricted(len(rows.tokens)).layout
            delta = trunk.new_zeros(layout.numel)
        variables = head.flatten() if delta is None else torch.cat([delta, head.flatten()])
        state = make_optimizer(adversary.optimizer).init(variables[None])
        edit = None if self._starts is None else self._starts.map(adversary, trunk)
        sampler = self._sampler(adversary, subset)
        return Member(adversary, lifespan, 0, subset, sampler, rows, delta, head, state, edit)

    def _sampler(self, adversary: Adversary, subset: Tensor | None) -> EpochSampler:
        indices = self._indices if subset is None else subset
        return EpochSampler(indices, min(adversary.batch_size, len(indices)), self._generator)

    def _restored(self, values: dict[str, Any]) -> Member:
        adversary = Adversary(**values["adversary"])
        subset = values["subset"]
        sampler = self._sampler(adversary, subset)
        sampler.load_state_dict(values["sampler"])
        return Member(
            adversary,
            values["lifespan"],
            values["age"],
            subset,
            sampler,
            self._member_rows(adversary, subset),
            values["delta"],
            values["head"],
            OptimizerState(values["num_updates"], tuple(values["moments"])),
            _edit_from(values),
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
        "num_updates": member.state.num_updates,
        "moments": list(member.state.moments),
        "factor": None if member.edit is None else member.edit.factor,
        "shift": None if member.edit is None else member.edit.shift,
    }


def _edit_from(values: dict[str, Any]) -> StartMap | None:
    """The edit of a stored member; a checkpoint from before starts could be edited has none."""
    factor, shift = values.get("factor"), values.get("shift")
    return None if factor is None or shift is None else StartMap(factor, shift)
