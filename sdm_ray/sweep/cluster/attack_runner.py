"""Runs the fine-tunes of an attack in parallel on a Ray cluster."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.util.actor_pool import ActorPool

from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.engine.outcome import Outcome
from sdm_ray.attack.families import Attacker
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.protocol import RunnerFactory
from sdm_ray.config import AttackSettings, ResourceSettings
from sdm_ray.core.extensions import load_modules
from sdm_ray.core.types import Params, Task

CHUNKS_PER_WORKER = 3
"""Chunks per worker that the attackers are split into; small chunks keep workers from idling at the end."""


class Target(NamedTuple):
    """The attacked model with its data and settings; sent to the workers once, as CPU tensors."""

    trunk: Any
    params: Params
    data: Any
    settings: AttackSettings
    task: Task
    knowledge: Knowledge | None

    def to(self, device: torch.device) -> Target:
        """Return a copy on a device."""
        knowledge = self.knowledge
        if knowledge is not None:
            public, head, masked_lm = knowledge.public, knowledge.own_head, knowledge.masked_lm
            knowledge = dataclasses.replace(
                knowledge,
                public=None if public is None else {name: value.to(device) for name, value in public.items()},
                own_head=None if head is None else head.to(device),
                masked_lm=None if masked_lm is None else masked_lm.to(device),
            )
        return self._replace(
            trunk=self.trunk.to(device),
            params={name: value.to(device) for name, value in self.params.items()},
            data=self.data.to(device),
            knowledge=knowledge,
        )


class AttackWorker:
    """Ray actor that runs attackers on one model.

    Args:
        target: the attacked model.
        num_threads: number of torch threads.
        modules: user modules to import, which may define attack families: digest of the source by module name.
        python_path: entries to add to `sys.path` for these modules.
    """

    def __init__(
        self,
        target: Target,
        num_threads: int,
        modules: Mapping[str, str] | None = None,
        python_path: Sequence[str] = (),
    ) -> None:
        torch.set_num_threads(num_threads)
        sys.path += [entry for entry in python_path if entry not in sys.path]
        load_modules(modules or {})
        device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
        self._executor = Executor(*target.to(device))

    def run(self, attackers: Sequence[Attacker], with_test: bool) -> list[Outcome]:
        """Return the outcomes of all attackers."""
        return [outcome for part in self._executor.run(attackers, with_test=with_test) for outcome in part]


class RayRunner:
    """Runs attackers in Ray actors. If an actor dies, its attackers are reported as crashed and so retried.

    Args:
        target: the attacked model.
        resources: CPUs and GPUs of a worker.
        num_workers: number of workers.
        modules: user modules that each worker imports, see `AttackWorker`.
    """

    def __init__(
        self,
        target: Target,
        resources: ResourceSettings,
        num_workers: int,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        shared = ray.put(target.to(torch.device("cpu")))
        worker = ray.remote(
            num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_restarts=-1
        )(AttackWorker)  # fmt: skip
        threads = max(1, int(resources.cpus_per_trial))
        own = (modules, [str(Path(path).resolve()) for path in sys.path]) if modules else ()
        self._actors = [worker.remote(shared, threads, *own) for _ in range(num_workers)]

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Iterator[list[Outcome]]:
        """Yield the outcomes of one chunk of attackers after the other, in an order that does not depend on timing."""
        parts = self._parts(attackers)
        pool = ActorPool(self._actors)
        for part in parts:
            pool.submit(lambda actor, values: actor.run.remote(values, with_test), part)
        for part in parts:
            try:
                yield pool.get_next()
            except ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:300]
                yield [Outcome(attacker, "crashed", 0.0, error=reason) for attacker in part]

    def _parts(self, attackers: Sequence[Attacker]) -> list[list[Attacker]]:
        """Group attackers that can run as one batch, and split the groups into chunks."""
        groups: dict[tuple[Any, ...], list[Attacker]] = defaultdict(list)
        for attacker in attackers:
            start = (attacker.edit, attacker.amount, attacker.amounts)
            groups[(attacker.trains, *start, attacker.batch_size, attacker.optimizer)].append(attacker)
        size = max(1, -(-len(attackers) // (len(self._actors) * CHUNKS_PER_WORKER)))
        parts = []
        for group in groups.values():
            ordered = sorted(group, key=lambda attacker: -attacker.num_steps)
            parts += [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return parts

    def close(self) -> None:
        """Kill the workers."""
        for actor in self._actors:
            ray.kill(actor)


def ray_runner(
    resources: ResourceSettings, num_workers: int, modules: Mapping[str, str] | None = None
) -> RunnerFactory:
    """Return a factory of runners on the cluster that this process is connected to; `modules` as in `AttackWorker`."""

    def make(
        trunk: Any, params: Params, data: Any, settings: AttackSettings, task: Task, knowledge: Knowledge | None
    ) -> RayRunner:
        return RayRunner(Target(trunk, params, data, settings, task, knowledge), resources, num_workers, modules)

    return make
