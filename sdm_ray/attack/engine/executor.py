"""Runs attackers: groups them into stacks that fit, trains and scores each stack, and survives those that fail."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdm_ray.attack.engine.flops import Counter
from sdm_ray.attack.engine.frozen import FrozenTrunk
from sdm_ray.attack.engine.outcome import Outcome, StackResult, outcomes_of
from sdm_ray.attack.engine.plan import AttackTimeoutError, Plan
from sdm_ray.attack.engine.planner import Planner
from sdm_ray.attack.engine.sizes import StackSizes
from sdm_ray.attack.engine.stack import Curves, Trained, train_stack
from sdm_ray.attack.engine.target import AttackTarget
from sdm_ray.attack.engine.tuned import TunedModels
from sdm_ray.attack.families import token_probe
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.edits import Editor
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.interface import UNLABELLED, known_positions
from sdm_ray.models.heads import logits
from sdm_ray.models.interface import TrunkLike

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


class Executor:
    """Runs attackers on one released model.

    Args:
        trunk: the architecture.
        params: released weights.
        data: texts and labels.
        settings: subsets, seeds and the size of the validation sample.
        task: whose labels the attackers learn.
        knowledge: what else is public.
    """

    def __init__(
        self,
        trunk: TrunkLike,
        params: Params,
        data: AttackDataset,
        settings: AttackSettings,
        task: Task,
        knowledge: Knowledge | None = None,
    ) -> None:
        target = AttackTarget.of(trunk, params, data, settings, task, knowledge)
        self._target, self._settings = target, settings
        self.val, self.test = target.val, target.test
        facts = target.knowledge.facts(trunk, target.num_classes)
        self.facts = facts._replace(knows_positions=known_positions(data) is not None)
        self.editor = Editor(trunk, target.params, data, target.knowledge, settings.seed, self._train_desired)
        self.models, self.frozen = TunedModels(target), FrozenTrunk(target, self.editor)
        released = Attacker(family="none", num_examples=0, trains="head")
        width = int(self.frozen.readings(released).pooled(Split.ATTACKER_VAL).shape[1])
        longest = int(self.val.batches[-1].input_ids.shape[-1])
        self._planner = Planner(target, width=width)
        self._sizes = StackSizes(trunk, target.params, target.embedding, longest=longest, width=width)
        mean_length = float(data.lengths_host()[target.pool].double().mean())
        self._counter = Counter(target.params, target.embedding, trunk, mean_length)
        if self.facts.knows_positions and token_probe.NAME in settings.families:
            plain = Attacker(family=token_probe.NAME, num_examples=0)
            self.facts = self.facts._replace(misses_directions=self.frozen.token_readers(plain).misses_directions)

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Iterator[list[Outcome]]:
        """Run attackers stack by stack. A stack that crashes or runs out of memory is split and run again.

        Args:
            attackers: the fine-tunes.
            with_test: whether to score on test too.

        Yields:
            Outcomes of each stack; every attacker occurs once.
        """
        for group in self._alike(attackers):
            waiting = sorted(group, key=lambda attacker: -attacker.num_steps)
            while waiting:
                size = self._sizes.of(waiting[0])
                stack, waiting = waiting[:size], waiting[size:]
                yield self._run_or_split(stack, with_test, self._settings.timeout_seconds)

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def subset(self, attacker: Attacker) -> Tensor:
        """(n,) indices of an attacker's labelled examples, from attacker-train."""
        return self._planner.subset(attacker)

    def plan(self, stack: Sequence[Attacker], seconds: float | None = None) -> Plan:
        """What attackers that are alike train on, in which order and from where; given up after `seconds`."""
        return self._planner.plan(stack, seconds)

    def train(self, plan: Plan) -> tuple[Trained, Curves]:
        """Fine-tune a stack of attackers that train the trunk or a part of it."""
        model = self.models.of(plan.attackers, self.editor)
        return train_stack(model, self._target.data, self._target.task, plan, self.val)

    def desired_accuracy(self) -> float:
        """Test accuracy (not class-balanced) of the released model on the desired task; NaN if no head was released."""
        return self._desired_left([Attacker(family="none", num_examples=0, trains="head")], None)[0]

    def _alike(self, attackers: Sequence[Attacker]) -> Iterator[list[Attacker]]:
        """Attackers that may share a stack, group by group."""
        groups: dict[tuple[Any, ...], list[Attacker]] = defaultdict(list)
        mixed = self.editor.mixed(attackers)
        for attacker in attackers:
            # The edit comes first in the key, so that attackers with equal edited weights or token states are adjacent.
            key = self.editor.key(attacker)
            if attacker.probe == token_probe.NAME and not attacker.edit:
                key = ("",)  # its amount is a penalty, not the strength of an edit
            start = () if attacker.trains == "full" and not attacker.pooling and key in mixed else key
            kind = (*start, attacker.trains, attacker.depth, attacker.rank, attacker.probe, attacker.pooling)
            groups[(*kind, attacker.batch_size, attacker.optimizer)].append(attacker)
        for _, group in sorted(groups.items(), key=lambda item: [str(part) for part in item[0]]):
            yield group

    def _run_or_split(self, stack: Sequence[Attacker], with_test: bool, seconds: float | None) -> list[Outcome]:
        """Run a stack; if it fails, split it and run the parts.

        The total time is bounded. If a stack of S attackers crashes, its halves share its `seconds`, so that repeated
        crashes take at most 1 + log2(S) times the limit. If it times out, its attackers are run one by one and share
        its `seconds` once more: an attacker that hangs does not fail the others, and the total is at most twice the
        limit.
        """
        started = time.perf_counter()
        try:
            return self._run_stack(stack, with_test, seconds)
        except RuntimeError as error:  # torch raises it for whatever goes wrong in a kernel, memory included
            message = " ".join(str(error).split())[:300] or type(error).__name__
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            timed_out = isinstance(error, AttackTimeoutError)
        # Outside the handler, whose traceback would keep the stack's tensors alive.
        if out_of_memory:
            torch.cuda.empty_cache()
        if len(stack) == 1:
            spent = time.perf_counter() - started
            return [Outcome(stack[0], "crashed", spent, error=message, timed_out=timed_out)]
        half = len(stack) // 2
        if out_of_memory:
            self._sizes.shrink_to(half)
        parts = [[a] for a in stack] if timed_out else [stack[:half], stack[half:]]
        shares = [None if seconds is None else seconds * len(part) / len(stack) for part in parts]
        pairs = zip(parts, shares, strict=True)
        return [outcome for part, share in pairs for outcome in self._run_or_split(part, with_test, share)]

    def _run_stack(self, stack: Sequence[Attacker], with_test: bool, seconds: float | None = None) -> list[Outcome]:
        started = time.perf_counter()
        splits = [Split.ATTACKER_VAL, Split.TEST] if with_test else [Split.ATTACKER_VAL]
        plan = self.plan(stack, seconds)
        result = self._result(plan, splits)
        return outcomes_of(plan, result, self._counter, time.perf_counter() - started)

    def _result(self, plan: Plan, splits: Sequence[Split]) -> StackResult:
        """Train and score a stack."""
        stack, trained = plan.attackers, None
        healthy = torch.ones(len(stack), dtype=torch.bool)
        curves = Curves(torch.zeros(0, len(stack)), tuple(() for _ in stack))
        if stack[0].trains == "probe":
            scored = self.frozen.probe(plan, splits)
        elif stack[0].trains == "head":
            heads, curves = self.frozen.train_heads(plan)
            healthy = heads.flatten(1).isfinite().all(1).cpu()
            readings = self.frozen.readings(stack[0])
            scored = {split: logits(readings.pooled(split), heads).cpu() for split in splits}
        else:
            trained, curves = self.train(plan)
            healthy = trained.finite().cpu()
            scored = {split: trained.logits(self._target.scored(split)) for split in splits}
        desired = self._desired_left(stack, trained) if Split.TEST in splits else [math.nan] * len(stack)
        return StackResult(scored, healthy, curves, desired)

    def _desired_left(self, stack: Sequence[Attacker], trained: Trained | None) -> list[float]:
        """Accuracy of the released desired head on each attacked trunk; NaN if no head was released, or if the
        attackers' features are not the pooled features that it takes."""
        head = self._target.knowledge.own_head
        if head is None or self._target.task is not Task.HARMFUL or stack[0].pooling:
            return [math.nan] * len(stack)
        if trained is None:
            scores = logits(self.frozen.readings(stack[0]).pooled(Split.TEST), head)[None]
        else:
            scores = trained.logits(self.test, head)
        labels = self._target.data.labels_host(Task.DESIRED)[self.test.indices]
        known = labels != UNLABELLED
        right = scores.cpu()[:, known].argmax(-1) == labels[known]
        accuracies = [float(value) for value in right.double().mean(1)]
        return accuracies if trained is not None else accuracies * len(stack)

    def _train_desired(self, params: Params, num_steps: int) -> Params:
        """The weights after Adam's steps on the desired labels of attacker-train, from `params` and a fresh head."""
        model, plan = self.models.full(params), self._planner.desired(num_steps)
        trained, _ = train_stack(model, self._target.data, Task.DESIRED, plan, self.val)
        params, _ = trained.params(slice(0, 1))
        return {name: value[0] for name, value in params.items()}


def retry_of(attacker: Attacker) -> Attacker:
    """The second attempt of a failed fine-tune: the same subset, another order and another head."""
    return dataclasses.replace(attacker, attempt=attacker.attempt + 1)
