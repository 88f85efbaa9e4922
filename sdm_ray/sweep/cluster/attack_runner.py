"""Fine-tunes of an attack spread over the worker processes of a Ray cluster."""

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
"""Parts that each worker's share of alike attackers is cut into, so that no worker waits long for the last one."""


class Target(NamedTuple):
    """What is attacked; it travels to the workers once, on the CPU."""

    trunk: Any
    params: Params
    data: Any
    settings: AttackSettings
    task: Task
    knowledge: Knowledge | None

    def to(self, device: torch.device) -> Target:
        """The same on a device."""
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
    """A process that runs attackers on one model.

    Args:
        target: what is attacked.
        num_threads: of torch.
        modules: of a user's own, by name, with the digests of their sources; families of attacks are theirs.
        python_path: where they are found.
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
        """Outcomes of all attackers."""
        return [outcome for part in self._executor.run(attackers, with_test=with_test) for outcome in part]


class RayRunner:
    """Runs attackers in worker processes. One that dies costs its attackers a retry, as any crash does.

    Args:
        target: what is attacked.
        resources: CPUs and GPUs of a worker.
        num_workers: how many there are.
        modules: that each of them loads, see `AttackWorker`.
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
        """Outcomes in the order of the parts that attackers are cut into, which does not depend on timing."""
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
        """Alike attackers together, cut into parts."""
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
        """End the workers."""
        for actor in self._actors:
            ray.kill(actor)


def ray_runner(
    resources: ResourceSettings, num_workers: int, modules: Mapping[str, str] | None = None
) -> RunnerFactory:
    """Makes runners on the cluster that this process is connected to; `modules` as for `AttackWorker`."""

    def make(
        trunk: Any, params: Params, data: Any, settings: AttackSettings, task: Task, knowledge: Knowledge | None
    ) -> RayRunner:
        return RayRunner(Target(trunk, params, data, settings, task, knowledge), resources, num_workers, modules)

    return make
