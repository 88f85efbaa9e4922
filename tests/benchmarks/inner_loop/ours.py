"""The gradient modes, for `tests.benchmarks.inner_loop`, and what else an outer step may be made of.

Beside the modes: `pool_turn`, a persistent adversary's turn of one step, first order; `sampled`, the adjoint with terms
read at 4 of the K+1 moments; `four_at_once` and `four_in_turn`, the adjoint for four adversaries as one batch and one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.types import Batch, Split, Task
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.pool import AdversaryPool
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.episode import Episode, Execution, MetaGradients, Start
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.loop import meta_gradients
from sdm_ray.meta.inner.problems import Data, EvaluationBatch
from tests.benchmarks.inner_loop.theirs import CLIP, RATE
from tests.benchmarks.inner_loop.world import World

OURS = ("unrolled", "adjoint_stored", "adjoint", "adjoint_compiled", "truncated", "first_order")
FLAT = ("adjoint", "adjoint_compiled", "truncated", "first_order")
"""Those whose memory is flat in K but for vectors."""
BESIDE = ("pool_turn", "sampled", "four_at_once", "four_in_turn")
TRUNCATION_STEPS = 4
NUM_SAMPLED = 4
NUM_ADVERSARIES = 4


def our_case(name: str, walk: str, world: World) -> Callable[[], Any]:
    """One outer step, by name."""
    model = FlatModel(world.trunk)
    if name == "pool_turn":
        return _pool_turn(model, walk, world)
    if name == "four_in_turn":
        parts = [_episodes(model, batches, walk, world) for batches in world.inner_batches_of_each(NUM_ADVERSARIES)]
        return lambda: [part("adjoint") for part in parts]
    run = _episodes(model, world.inner_batches(NUM_ADVERSARIES if name == "four_at_once" else 1), walk, world)
    if name == "four_at_once":
        return lambda: run("adjoint")
    if name == "sampled":
        generator, count = torch.Generator().manual_seed(0), world.num_steps + 1
        return lambda: run("adjoint", torch.randperm(count, generator=generator)[:NUM_SAMPLED].sort().values.tolist())
    return lambda: run(name)


def three_vectors(world: World) -> int:
    """Bytes of variables and both moments of Adam over what one adversary's episode holds."""
    model = FlatModel(world.trunk)
    rows = model.plan_rows(_occurring(world.inner, world.outer), torch.device("cpu"))
    return 3 * 4 * (model.restricted(len(rows.tokens)).layout.numel + world.head.numel())


def _weights(walk: str) -> dict[str, float]:
    return {"harmful_adapted" if walk == "one" else "harmful_adapted_calibrated": 1.0}


def _occurring(inner: Sequence[Batch], outer: Batch) -> Tensor:
    return torch.cat([batch.input_ids.flatten().cpu() for batch in (*inner, outer)])


def _episodes(model: FlatModel, inner: list[Batch], walk: str, world: World) -> Callable[..., MetaGradients]:
    """Meta-gradients of the adversaries of inner batches (A, B, L), in a mode and at given evaluated steps."""
    num_steps, num_adversaries, learned = world.num_steps, len(inner[0].labels), walk != "paper"
    adversary = Adversary(
        optimizer="adam", batch_size=world.shape.inner, num_steps=num_steps, learning_rate=None, schedule="constant",
        adaptation="full", depth=0, rank=0, reset_head=False, noise=0.0,
    )  # fmt: skip
    occurring, flat = _occurring(inner, world.outer), model.initial()

    def run(mode: str, steps: Sequence[int] = range(num_steps + 1)) -> MetaGradients:
        episode = Episode(
            data=Data(tuple(inner), (EvaluationBatch(world.outer, None),)),
            adversary=adversary,
            evaluated_steps=tuple(steps),
            mode=mode.removesuffix("_compiled"),
            truncation_steps=TRUNCATION_STEPS,
            gradient_clip=CLIP,
            rows=model.plan_rows(occurring, world.device),
        )
        head = world.head.repeat(num_adversaries, 1, 1).requires_grad_(learned)
        rate = torch.full((num_adversaries,), RATE, device=world.device).log().requires_grad_(learned)
        compiled = mode.endswith("_compiled")
        return meta_gradients(
            model, Start(flat[None], head, rate), episode, _weights(walk), execution=Execution(compiled=compiled)
        )

    return run


def _pool_turn(model: FlatModel, walk: str, world: World) -> Callable[[], Any]:
    data = world.device_data()
    indices = data.indices(Split.META_TRAIN)
    pool_settings = {"size": 8, "steps_per_turn": 1, "frozen_probability": 0.0}
    adversary = {"num_steps": 0, "batch_sizes": (world.shape.inner,), "pool": pool_settings}
    settings = TrainSettings.model_validate({"adversary": adversary})
    pool = AdversaryPool(
        settings,
        model=model,
        data=data,
        indices=indices,
        few_shot=FewShot(indices, data.labels_host(Task.HARMFUL)),
        generator=torch.Generator().manual_seed(0),
    )
    flat, outer_indices = model.initial(), indices[: world.shape.outer]
    outer = data.batch(outer_indices, Task.HARMFUL)
    pool.start(flat)
    return lambda: pool.turn(flat, outer, outer_indices, _weights(walk))
