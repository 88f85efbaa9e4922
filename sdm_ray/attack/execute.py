"""Runs attackers: groups them into stacks that fit, trains and scores each stack, and survives those that fail."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sdm_ray.attack.batch import Plan, Trained, by_device, plan_device, train_full, train_heads
from sdm_ray.attack.families import Attacker
from sdm_ray.attack.plan import (
    batch_order,
    choose_subset,
    head_generator,
    order_generator,
    seeded,
    subset_generator,
)
from sdm_ray.attack.report import RecordStatus
from sdm_ray.attack.views import ScoringSet, trunk_features, validation_sample
from sdm_ray.config.attack import AttackSettings
from sdm_ray.models.heads import init_head, logits
from sdm_ray.types import Params, Split, Task

if TYPE_CHECKING:
    from sdm_ray.data.device import DeviceData

LARGEST_STACK = {"cpu": 32, "cuda": 128}
"""Attackers in a stack at most."""
CPU_STACK_TOKENS = 6144
"""Tokens of a step over all attackers of a stack on a CPU: more fall out of the caches and are no faster."""
CPU_STACK_BYTES = 2 * 1024**3
"""Memory that a stack may take on a CPU."""
CUDA_FREE_SHARE = 0.5
"""Share of the free GPU memory that a stack may take."""


@dataclass(frozen=True)
class Outcome:
    """One finished or failed fine-tune."""

    attacker: Attacker
    status: RecordStatus
    seconds: float
    train_loss: float = float("nan")
    val_logits: Tensor | None = None
    """(N, C) on the host, in the order of `Executor.val`."""
    test_logits: Tensor | None = None
    """(N, C) on the host, in the order of `Executor.test`; None in the search, which never reads test."""
    error: str = ""


class Executor:
    """Runs attackers on one released model.

    Args:
        trunk: the architecture.
        params: released weights.
        data: texts and labels.
        settings: subsets, seeds and the size of the validation sample.
        task: whose labels the attackers learn.
    """

    def __init__(
        self, trunk: nn.Module, params: Params, data: DeviceData, settings: AttackSettings, task: Task
    ) -> None:
        self._params = {name: value.detach() for name, value in params.items()}
        self._embedding: str | None = getattr(trunk, "embedding_name", None)
        self._trunk, self._data, self._settings, self._task = trunk, data, settings, task
        self._device = plan_device(self._params)
        self._dtype = next(iter(self._params.values())).dtype
        self._num_classes = data.num_classes(task)
        generator = seeded(settings.seed, "validation sample")
        candidates = data.indices(Split.ATTACKER_VAL)
        labels = data.labels_host(task)[candidates]
        sample = validation_sample(candidates, labels, settings.max_validation_examples, self._num_classes, generator)
        self.val = ScoringSet.of(data, sample, task)
        self.test = ScoringSet.of(data, data.indices(Split.TEST), task)
        self._frozen_features: dict[Split, Tensor] = {}
        self._feature_dim = int(self._features(Split.ATTACKER_VAL).shape[1])
        self._pool = data.indices(Split.ATTACKER_TRAIN)
        self._pool_labels = data.labels_host(task)[self._pool]
        self._longest = int(self.val.batches[-1].input_ids.shape[-1])
        self._largest_stack = self._estimate_stack()

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Iterator[list[Outcome]]:
        """Run attackers stack by stack; a crash or a lack of memory is retried in smaller stacks, down to one.

        Args:
            attackers: the fine-tunes.
            with_test: also score on test.

        Yields:
            Outcomes of each stack, every attacker once.
        """
        groups: dict[tuple[bool, int, str], list[Attacker]] = defaultdict(list)
        for attacker in attackers:
            groups[attacker.frozen, attacker.batch_size, attacker.optimizer].append(attacker)
        for (frozen, batch_size, _), group in sorted(groups.items()):
            waiting = sorted(group, key=lambda attacker: -attacker.num_steps)
            while waiting:
                size = len(waiting) if frozen else self._stack_size(batch_size)
                stack, waiting = waiting[:size], waiting[size:]
                yield self._run_or_split(stack, with_test)

    def _stack_size(self, batch_size: int) -> int:
        if self._device.type != "cpu":
            return self._largest_stack
        return max(1, min(self._largest_stack, CPU_STACK_TOKENS // (batch_size * self._longest)))

    def _run_or_split(self, stack: Sequence[Attacker], with_test: bool) -> list[Outcome]:
        started = time.perf_counter()
        try:
            return self._run_stack(stack, with_test)
        except RuntimeError as error:  # torch raises it for whatever goes wrong in a kernel, memory included
            message = " ".join(str(error).split())[:300] or type(error).__name__
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        # Outside the handler, whose traceback would keep the stack's tensors alive.
        if out_of_memory:
            torch.cuda.empty_cache()
        if len(stack) == 1:
            return [Outcome(stack[0], "crashed", time.perf_counter() - started, error=message)]
        half = len(stack) // 2
        if out_of_memory:
            self._largest_stack = min(self._largest_stack, half)
        return self._run_or_split(stack[:half], with_test) + self._run_or_split(stack[half:], with_test)

    def _run_stack(self, stack: Sequence[Attacker], with_test: bool) -> list[Outcome]:
        started = time.perf_counter()
        plan = self._plan(stack)
        splits = [Split.ATTACKER_VAL, Split.TEST] if with_test else [Split.ATTACKER_VAL]
        if stack[0].frozen:
            heads, losses = self._train_heads(plan)
            finite = heads.flatten(1).isfinite().all(1)
            scored = {split: logits(self._features(split), heads).cpu() for split in splits}
        else:
            trained, losses = self._train_full(plan)
            finite = trained.finite()
            scored = {split: trained.logits(self._examples(split)) for split in splits}
        healthy = finite.cpu()
        for values in scored.values():
            healthy = healthy & values.flatten(1).isfinite().all(1)
        seconds = time.perf_counter() - started
        total_steps = sum(attacker.num_steps for attacker in stack)
        return [
            Outcome(
                attacker,
                "ok" if healthy[i] else "diverged",
                seconds * attacker.num_steps / total_steps,
                train_loss=float(losses[i]),
                val_logits=scored[Split.ATTACKER_VAL][i],
                test_logits=scored[Split.TEST][i] if with_test else None,
                error="" if healthy[i] else "parameters or predictions are not finite",
            )
            for i, attacker in enumerate(stack)
        ]

    def _train_full(self, plan: Plan) -> tuple[Trained, Tensor]:
        return train_full(self._trunk, self._params, self._embedding, self._data, self._task, plan)

    def _train_heads(self, plan: Plan) -> tuple[Tensor, Tensor]:
        needed = torch.from_numpy(np.unique(torch.cat(plan.subsets).numpy()))
        owned = ScoringSet.of(self._data, needed, self._task)
        features = trunk_features(self._trunk, self._params, owned)
        row = torch.empty(int(needed.max()) + 1, dtype=torch.long)
        row[owned.indices] = torch.arange(len(owned))
        return train_heads(features, owned.labels.to(self._device), plan, [row[subset] for subset in plan.subsets])

    def _examples(self, split: Split) -> ScoringSet:
        return {Split.ATTACKER_VAL: self.val, Split.TEST: self.test}[split]

    def _features(self, split: Split) -> Tensor:
        if split not in self._frozen_features:
            self._frozen_features[split] = trunk_features(self._trunk, self._params, self._examples(split))
        return self._frozen_features[split]

    def _plan(self, stack: Sequence[Attacker]) -> Plan:
        seed = self._settings.seed
        return Plan(
            attackers=tuple(stack),
            subsets=tuple(self.subset(attacker) for attacker in stack),
            orders=tuple(
                batch_order(a.num_examples, a.batch_size, a.num_steps, order_generator(seed, a)) for a in stack
            ),
            heads=torch.stack(
                [init_head(self._feature_dim, self._num_classes, head_generator(seed, a)) for a in stack]
            ).to(self._dtype),
        )

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

    def _estimate_stack(self) -> int:
        """Attackers that fit into memory, by a rough count of weights and activations."""
        batch, length = max(self._settings.batch_sizes), self._longest
        trained = sum(value.numel() for name, value in self._params.items() if name != self._embedding)
        if self._embedding is not None:
            rows = min(len(self._params[self._embedding]), max(self._settings.num_examples) * length)
            trained += rows * self._feature_dim
        element = torch.finfo(self._dtype).bits // 8
        # Weight, gradient, two moments; activations after Korthikanti et al. (arXiv 2205.05198), eager attention.
        needed = element * (4 * trained + batch * length * self._activations_per_token(length))
        if self._device.type == "cuda":
            budget = CUDA_FREE_SHARE * torch.cuda.mem_get_info(self._device)[0]
        else:
            budget = CPU_STACK_BYTES
        return max(1, min(by_device(LARGEST_STACK, self._device), int(budget // needed)))

    def _activations_per_token(self, length: int) -> int:
        config: Any = getattr(getattr(self._trunk, "hf_model", None), "config", None)
        if config is None:
            return 0
        width, heads = int(config.hidden_size), int(config.num_attention_heads)
        return int(config.num_hidden_layers) * (20 * width + 3 * heads * length)


def retry_of(attacker: Attacker) -> Attacker:
    """The second attempt of a failed fine-tune: the same subset, another order and another head."""
    return dataclasses.replace(attacker, attempt=attacker.attempt + 1)
