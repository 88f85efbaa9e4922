"""What the work of `tests.benchmarks.inner_loop` takes at the least, counted; and whether all loops do that work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sdm_ray.core.types import Batch
from sdm_ray.meta.inner.flat_model import FlatModel
from tests.benchmarks.inner_loop.ours import OURS
from tests.benchmarks.inner_loop.turns import Job
from tests.benchmarks.inner_loop.world import World

EXACT = ("torchopt", *(name for name in OURS if name not in ("truncated", "first_order")))
"""Loops that give the gradient of the whole loop, as `higher` does."""
LEAST_COSINE = 0.999


class Flops(NamedTuple):
    """FLOPs of the parts of an outer step, by `torch.utils.flop_counter` (matrix products alone)."""

    gradients: float
    """K inner losses and their gradients: K plain fine-tuning steps."""
    products: float
    """K Hessian-vector products: a backward pass through the graph of each gradient, which is kept."""
    forwards: float
    """K+1 outer losses."""
    backwards: float
    """K+1 gradients of outer losses."""

    def work(self, num_walks: int) -> float:
        """An outer step whose loop is walked back so many times."""
        return self.gradients + self.forwards + num_walks * (self.backwards + self.products)


def count_flops(world: World, *, shortcut: bool) -> Flops:
    """Count an episode's FLOPs.

    Args:
        world: its model and batches.
        shortcut: leave out of the last layer what the first token does not need, as ours do.
    """
    model = FlatModel(world.trunk)
    flat = model.initial().requires_grad_()
    options = {"shortcut": True} if shortcut else {}
    counts: dict[int, tuple[float, float, float]] = {}

    def loss(batch: Batch) -> Tensor:
        features = functional_call(world.trunk, model.layout.unflatten(flat), batch.inputs, options)
        return F.cross_entropy(features @ world.head.T, batch.labels)

    def parts(batch: Batch) -> tuple[float, float, float]:
        """Of a loss, its gradient, and a product."""
        forward, value = _count(lambda: loss(batch))
        backward, (gradient,) = _count(lambda: torch.autograd.grad(value, flat, create_graph=True))
        return forward, backward, _count(lambda: torch.autograd.grad(gradient, flat, torch.ones_like(flat)))[0]

    gradients = products = 0.0
    for batch in (one.at(0) for one in world.inner):
        width = batch.input_ids.shape[1]
        if width not in counts:
            counts[width] = parts(batch)
        forward, backward, product = counts[width]
        gradients, products = gradients + forward + backward, products + product
    forward, backward, _ = parts(world.outer)
    moments = world.num_steps + 1
    return Flops(gradients, products, moments * forward, moments * backward)


def _count(work: Callable[[], Any]) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result


def agreement(job: Job, cases: Sequence[str]) -> dict[str, float]:
    """Cosines of the trunk gradients of one uncalibrated loss with that of `higher`.

    Args:
        job: the work; its case is left aside.
        cases: of `EXACT`.

    Raises:
        SystemExit: if one falls short of `LEAST_COSINE`.
    """
    theirs = _trunk_gradient(job._replace(case="higher", walk="one"))
    found = {}
    for name in cases:
        other = _trunk_gradient(job._replace(case=name, walk="one"))
        found[name] = float(F.cosine_similarity(other.double(), theirs.double(), dim=0))
        if not found[name] > LEAST_COSINE:
            raise SystemExit(
                f"the trunk gradient of {name} has a cosine of {found[name]:.5f} with that of `higher`, not above "
                f"{LEAST_COSINE}: the loops do not do the same work, so nothing was timed"
            )
    return found


def _trunk_gradient(job: Job) -> Tensor:
    """(P,) in the order of `FlatModel`."""
    world = job.world()
    result = job.make(world)()
    if job.case in OURS:
        gradient: Tensor = result.trunk[0]
        return gradient
    named = zip(dict(world.trunk.named_parameters()).items(), result, strict=False)
    filled = {name: torch.zeros_like(value) if found is None else found for (name, value), found in named}
    return FlatModel(world.trunk).layout.flatten(filled)
