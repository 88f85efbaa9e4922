"""Runs attackers: groups them into stacks that fit, trains and scores each stack, and survives those that fail."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdm_ray.attack.engine.draws import batch_order, choose_subset, head_generator, order_generator, subset_generator
from sdm_ray.attack.engine.flops import Counter
from sdm_ray.attack.engine.readings import Readings
from sdm_ray.attack.engine.scoring import ScoringSet, forward_options, validation_sample
from sdm_ray.attack.engine.sizes import StackSizes
from sdm_ray.attack.engine.stack import (
    AttackTimeoutError,
    Curves,
    Model,
    Plan,
    Trained,
    plan_device,
    train_heads,
    train_stack,
)
from sdm_ray.attack.engine.token_readers import TokenReaders
from sdm_ray.attack.families import token_probe
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.edits import PREPARING_BATCH, PREPARING_RATE, Editor
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.families.lora import LoraTrunk
from sdm_ray.attack.families.probes import PROBES, standardised
from sdm_ray.attack.families.token_heads import PREFIX, TokenHeadTrunk
from sdm_ray.attack.report import RecordStatus
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.interface import UNLABELLED, known_positions, labelled
from sdm_ray.models.heads import init_head, logits
from sdm_ray.models.interface import TrunkLike, as_module
from sdm_ray.models.trunk import Trunk

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


@dataclass(frozen=True)
class Outcome:
    """One finished or failed fine-tune."""

    attacker: Attacker
    status: RecordStatus
    seconds: float
    flops: float = float("nan")
    train_losses: tuple[float, ...] = ()
    """Mean training loss from each evaluated step to the next, the last one up to the end."""
    evaluated_steps: tuple[int, ...] = ()
    """Steps after which it was scored; the last one is the end."""
    val_curve_logits: tuple[Tensor, ...] = ()
    """(N, C) logits on attacker-validation at the evaluated steps before the end."""
    val_logits: Tensor | None = None
    """(N, C) on the host, in the order of `Executor.val`."""
    test_logits: Tensor | None = None
    """(N, C) on the host, in the order of `Executor.test`; None in the search, which never reads test."""
    desired_accuracy: float = math.nan
    """Plain accuracy on test that is left on the desired task, by the released head; NaN where there is none."""
    error: str = ""
    timed_out: bool = False
    """It was given up because it took too long; a second attempt would take as long."""


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
        self._params = {name: value.detach() for name, value in params.items()}
        self._embedding = trunk.embedding_name
        self._trunk, self._data, self._settings, self._task = trunk, data, settings, task
        self._device = plan_device(self._params)
        self._dtype = next(iter(self._params.values())).dtype
        self._num_classes = data.num_classes(task)
        self._knowledge = knowledge or Knowledge()
        facts = self._knowledge.facts(trunk, self._num_classes)
        self.facts = facts._replace(knows_positions=known_positions(data) is not None)
        self._editor = Editor(trunk, self._params, data, self._knowledge, settings.seed, self._train_desired)
        generator = seeded(settings.seed, "validation sample")
        candidates = data.indices(Split.ATTACKER_VAL)
        labels = data.labels_host(task)[candidates]
        sample = validation_sample(candidates, labels, settings.max_validation_examples, self._num_classes, generator)
        self.val = ScoringSet.of(data, sample, task)
        self.test = ScoringSet.of(data, data.indices(Split.TEST), task)
        self._pool = data.indices(Split.ATTACKER_TRAIN)
        self._pool_labels = data.labels_host(task)[self._pool]
        self._released = self._read(self._params)
        self._read_edited: tuple[object, Readings] = ((), self._released)
        self._feature_dim = int(self._released.pooled(Split.ATTACKER_VAL).shape[1])
        self._longest = int(self.val.batches[-1].input_ids.shape[-1])
        self._lora: dict[int, LoraTrunk] = {}
        self._token_readers: tuple[object, TokenReaders] | None = None
        """Readers of tokens under the weights of the last edit."""
        self._sizes = StackSizes(trunk, self._params, self._embedding, longest=self._longest, width=self._feature_dim)
        self._counter = Counter(
            self._params, self._embedding, trunk, float(data.lengths_host()[self._pool].double().mean())
        )
        if self.facts.knows_positions and token_probe.NAME in settings.families:
            plain = Attacker(family=token_probe.NAME, num_examples=0)
            self.facts = self.facts._replace(misses_directions=self._token_readers_of(plain).misses_directions)

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Iterator[list[Outcome]]:
        """Run attackers stack by stack; a crash or a lack of memory is retried in smaller stacks, down to one.

        Args:
            attackers: the fine-tunes.
            with_test: also score on test.

        Yields:
            Outcomes of each stack, every attacker once.
        """
        groups: dict[tuple[Any, ...], list[Attacker]] = defaultdict(list)
        mixed = self._editor.mixed(attackers)
        for attacker in attackers:
            # Edits first: those that share edited weights follow each other. Readers of tokens share the states too.
            key = self._editor.key(attacker)
            if attacker.probe == token_probe.NAME and not attacker.edit:
                key = ("",)  # its amount is none of an edit
            start = () if attacker.trains == "full" and not attacker.pooling and key in mixed else key
            kind = (*start, attacker.trains, attacker.depth, attacker.rank, attacker.probe, attacker.pooling)
            groups[(*kind, attacker.batch_size, attacker.optimizer)].append(attacker)
        for _, group in sorted(groups.items(), key=lambda item: [str(part) for part in item[0]]):
            waiting = sorted(group, key=lambda attacker: -attacker.num_steps)
            while waiting:
                size = self._sizes.of(waiting[0])
                stack, waiting = waiting[:size], waiting[size:]
                yield self._run_or_split(stack, with_test, self._settings.timeout_seconds)

    def close(self) -> None:
        """Nothing to let go of."""

    def subset(self, attacker: Attacker) -> Tensor:
        """(n,) example indices that an attacker owns, all of attacker-train."""
        return choose_subset(
            self._pool,
            self._pool_labels,
            attacker.num_examples,
            self._num_classes,
            balanced=self._settings.class_balanced,
            generator=subset_generator(self._settings.seed, attacker),
        )

    def _run_or_split(self, stack: Sequence[Attacker], with_test: bool, seconds: float | None) -> list[Outcome]:
        """Run a stack, and smaller ones where it fails.

        The time is bounded. Where a stack of S crashes, its halves share its `seconds`, so that S attackers which crash
        one after the other take at most 1 + log2(S) times the limit. Where it takes too long, its attackers share its
        `seconds` once more, one by one: one that hangs costs the others nothing, and all together take at most twice
        the limit.
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
        healthy = torch.ones(len(stack), dtype=torch.bool)
        curves = Curves(torch.zeros(0, len(stack)), tuple(() for _ in stack))
        if stack[0].trains == "probe":
            scored = self._probe(plan, splits)
        elif stack[0].trains == "head":
            heads, curves = self._train_heads(plan)
            healthy = heads.flatten(1).isfinite().all(1).cpu()
            scored = {split: logits(self._readings(stack[0]).pooled(split), heads).cpu() for split in splits}
        else:
            trained, curves = self.train(plan)
            healthy = trained.finite().cpu()
            scored = {split: trained.logits(self._examples(split)) for split in splits}
        for values in scored.values():
            healthy = healthy & values.flatten(1).isfinite().all(1)
        desired = (
            self._desired_left(stack, None if stack[0].frozen else trained) if with_test else [math.nan] * len(stack)
        )
        seconds = time.perf_counter() - started
        shares = [max(attacker.num_steps, 1) for attacker in stack]
        steps = [(*plan.evaluated_steps[i], attacker.num_steps) for i, attacker in enumerate(stack)]
        return [
            Outcome(
                attacker,
                "ok" if healthy[i] else "diverged",
                seconds * shares[i] / sum(shares),
                flops=self._counter.of(attacker),
                train_losses=_means(
                    curves.losses[: attacker.num_steps, i], (*plan.evaluated_steps[i], attacker.num_steps)
                ),
                evaluated_steps=steps[i],
                val_curve_logits=curves.scored[i],
                val_logits=scored[Split.ATTACKER_VAL][i],
                test_logits=scored[Split.TEST][i] if with_test else None,
                desired_accuracy=desired[i],
                error="" if healthy[i] else "parameters or predictions are not finite",
            )
            for i, attacker in enumerate(stack)
        ]

    def desired_accuracy(self) -> float:
        """Plain test accuracy of the released model on the desired task; NaN where no desired head was released."""
        return self._desired_left([Attacker(family="none", num_examples=0, trains="head")], None)[0]

    def _desired_left(self, stack: Sequence[Attacker], trained: Trained | None) -> list[float]:
        """Accuracy of the released desired head on each attacked trunk; NaN where no head was released, or where the
        attackers' features are not those that it reads."""
        head = self._knowledge.own_head
        if head is None or self._task is not Task.HARMFUL or stack[0].pooling:
            return [math.nan] * len(stack)
        if trained is None:
            scores = logits(self._readings(stack[0]).pooled(Split.TEST), head)[None]
        else:
            scores = trained.logits(self.test, head)
        labels = self._data.labels_host(Task.DESIRED)[self.test.indices]
        known = labels != UNLABELLED
        right = scores.cpu()[:, known].argmax(-1) == labels[known]
        accuracies = [float(value) for value in right.double().mean(1)]
        return accuracies if trained is not None else accuracies * len(stack)

    def train(self, plan: Plan) -> tuple[Trained, Curves]:
        """Fine-tune attackers that are alike, the trunk or part of it included."""
        return train_stack(self._model(plan.attackers), self._data, self._task, plan, self.val)

    def _model(self, stack: Sequence[Attacker]) -> Model:
        """What the attackers of a stack, alike in that, fine-tune."""
        first, params = stack[0], self._editor.edited(stack[0])
        if first.pooling:
            return self._token_heads(stack, params)
        mixed = len({self._editor.key(attacker) for attacker in stack}) > 1
        if first.trains == "lora":
            if first.rank not in self._lora:
                assert isinstance(self._trunk, Trunk), type(self._trunk)
                self._lora[first.rank] = LoraTrunk(self._trunk, first.rank)
            adapted = self._lora[first.rank]
            generators = [seeded(self._settings.seed, "factors", attacker) for attacker in stack]
            like = next(iter(params.values()))
            return Model(adapted.module, adapted.shared(params), {}, adapted.factors(generators, like))
        starts = tuple(self._editor.edited(attacker) for attacker in stack) if mixed else ()
        return self._full(params, first.depth, starts)

    def _token_heads(self, stack: Sequence[Attacker], params: Params) -> Model:
        """All weights and a reader of tokens."""
        assert isinstance(self._trunk, Trunk), type(self._trunk)
        module = TokenHeadTrunk(self._trunk, stack[0].pooling, self._num_classes)
        generators = [seeded(self._settings.seed, "reader", attacker) for attacker in stack]
        start = {PREFIX + name: value for name, value in params.items()}
        embedding = None if self._embedding is None else PREFIX + self._embedding
        own = module.readers(generators, next(iter(params.values())))
        return Model(module, {}, start, own, embedding=embedding, fixed_ids=self._trunk.fixed_ids)

    def _full(self, params: Params, depth: int = 0, starts: tuple[Params, ...] = ()) -> Model:
        """What moves from a depth on, all attackers from `params` or each from its own."""
        moving = {name: value for name, value in params.items() if self._trunk.depth_of(name) >= depth}
        shared = {name: value for name, value in params.items() if name not in moving}
        embedding = self._embedding if self._embedding in moving else None
        return Model(
            as_module(self._trunk),
            shared,
            moving,
            embedding=embedding,
            fixed_ids=self._trunk.fixed_ids,
            options=forward_options(self._trunk),
            packs=self._trunk.has_packing,
            starts=starts,
        )

    def _train_desired(self, params: Params, num_steps: int) -> Params:
        """The weights after Adam's steps on the desired labels of attacker-train, from `params` and a fresh head."""
        pool = labelled(self._data, self._pool, Task.DESIRED)
        attacker = Attacker(
            family="benign_first",
            num_examples=len(pool),
            learning_rate=PREPARING_RATE,
            num_steps=num_steps,
            batch_size=min(PREPARING_BATCH, len(pool)),
        )
        seed = self._settings.seed
        order = batch_order(attacker.num_examples, attacker.batch_size, num_steps, order_generator(seed, attacker))
        num_classes = self._data.num_classes(Task.DESIRED)
        head = init_head(self._feature_dim, num_classes, head_generator(seed, attacker)).to(self._dtype)
        plan = Plan((attacker,), (pool,), (order,), head[None])
        trained, _ = train_stack(self._full(params), self._data, Task.DESIRED, plan, self.val)
        params, _ = trained.params(slice(0, 1))
        return {name: value[0] for name, value in params.items()}

    def _train_heads(self, plan: Plan) -> tuple[Tensor, Curves]:
        needed = torch.from_numpy(np.unique(torch.cat(plan.subsets).numpy()))
        labels = self._data.labels_host(self._task)[needed].to(self._device)
        readings = self._readings(plan.attackers[0])
        features, val_features = readings.owned.pooled(needed), readings.pooled(Split.ATTACKER_VAL)
        return train_heads(features, labels, plan, _positions(needed, plan.subsets), val_features)

    def _probe(self, plan: Plan, splits: Sequence[Split]) -> dict[Split, Tensor]:
        """(S, N, C) scores of every split by classifiers that train no weight of the model, one after the other."""
        if plan.attackers[0].probe == token_probe.NAME:
            return self._read_tokens(plan, splits)
        labels_host, readings = self._data.labels_host(self._task), self._readings(plan.attackers[0])
        scored: dict[Split, list[Tensor]] = {split: [] for split in splits}
        for attacker, subset in zip(plan.attackers, plan.subsets, strict=True):
            pooled = attacker.layer < 0
            mine = readings.owned.pooled(subset) if pooled else readings.owned.hidden(attacker.layer, subset)
            owned, *others = standardised(mine, tuple(readings.read(split, attacker.layer) for split in splits))
            labels = labels_host[subset].to(owned.device)
            classify = PROBES[attacker.probe](owned, labels, self._num_classes, attacker.amount)
            for split, values in zip(splits, others, strict=True):
                scored[split].append(classify(values).to(self._dtype).cpu())
        return {split: torch.stack(values) for split, values in scored.items()}

    def _token_readers_of(self, attacker: Attacker) -> TokenReaders:
        """Readers of tokens under an attacker's edited weights; those of the last edit are kept."""
        key = self._editor.key(attacker) if attacker.edit else ("",)
        if self._token_readers is None or self._token_readers[0] != key:
            params = self._editor.edited(attacker)
            self._token_readers = (
                key, TokenReaders(self._trunk, params, self._data, self._task, self._settings.seed)
            )  # fmt: skip
        return self._token_readers[1]

    def _read_tokens(self, plan: Plan, splits: Sequence[Split]) -> dict[Split, Tensor]:
        """(S, N, C) scores of every split by readers of single tokens."""
        reading = self._token_readers_of(plan.attackers[0])
        chosen = [attacker.reading == token_probe.MISSING for attacker in plan.attackers]
        found = {split: torch.zeros(len(chosen), len(self._examples(split)), self._num_classes) for split in splits}
        for by_validation in sorted(set(chosen)):
            rows = [row for row, one in enumerate(chosen) if one == by_validation]
            attackers, subsets = [plan.attackers[row] for row in rows], [plan.subsets[row] for row in rows]
            texts = [self._examples(split) for split in splits]
            if by_validation:
                assert splits[0] is Split.ATTACKER_VAL
                scored = reading.chosen_scores(attackers, subsets, texts)
            else:
                readers = reading.fit(attackers, subsets, plan.deadline)
                scored = [reading.scores(readers, examples) for examples in texts]
            for split, scores in zip(splits, scored, strict=True):
                found[split][rows] = scores.to(found[split])
        return {split: scores.to(self._dtype) for split, scores in found.items()}

    def _read(self, params: Params) -> Readings:
        scored = {Split.ATTACKER_VAL: self.val, Split.TEST: self.test}
        return Readings(self._trunk, params, self._data, self._pool, self._task, scored)

    def _readings(self, attacker: Attacker) -> Readings:
        """What an attacker with a frozen trunk reads; that of the last edit is kept."""
        if not attacker.edit:
            return self._released
        key = self._editor.key(attacker)
        if self._read_edited[0] != key:
            self._read_edited = key, self._read(self._editor.edited(attacker))
        return self._read_edited[1]

    def _examples(self, split: Split) -> ScoringSet:
        return {Split.ATTACKER_VAL: self.val, Split.TEST: self.test}[split]

    def plan(self, stack: Sequence[Attacker], seconds: float | None = None) -> Plan:
        """What attackers that are alike train on, in which order and from where; given up after `seconds`."""
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

    def _head(self, attacker: Attacker) -> Tensor:
        if attacker.own_head and self._knowledge.own_head is not None:
            return self._knowledge.own_head.detach().cpu().to(self._dtype)
        if attacker.pooling == "maximum":  # the features are the classes' scores
            return torch.eye(self._num_classes, dtype=self._dtype)
        generator = head_generator(self._settings.seed, attacker)
        return init_head(self._feature_dim, self._num_classes, generator).to(self._dtype)

    def _evaluated_steps(self, attacker: Attacker) -> tuple[int, ...]:
        """Steps, evenly spaced in their logarithm, after which a re-run is scored before its end."""
        count, last = self._settings.num_curve_points, attacker.num_steps
        if attacker.phase != "rerun" or attacker.trains == "probe" or count < 2:
            return ()
        spaced = np.geomspace(1, max(last, 1), count).round().astype(int)
        return tuple(sorted({int(step) for step in spaced if step < last}))


def retry_of(attacker: Attacker) -> Attacker:
    """The second attempt of a failed fine-tune: the same subset, another order and another head."""
    return dataclasses.replace(attacker, attempt=attacker.attempt + 1)


def _positions(indices: Tensor, subsets: Sequence[Tensor]) -> list[Tensor]:
    """Where the examples of each subset lie in `indices`."""
    row = torch.empty(int(indices.max()) + 1, dtype=torch.long)
    row[indices] = torch.arange(len(indices))
    return [row[subset] for subset in subsets]


def _means(losses: Tensor, ends: Sequence[int]) -> tuple[float, ...]:
    """Means of losses (T,) from each end to the next."""
    starts = (0, *ends[:-1])
    return tuple(float(losses[a:b].mean()) for a, b in zip(starts, ends, strict=True) if b > a)
