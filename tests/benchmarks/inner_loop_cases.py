"""What `tests.benchmarks.inner_loop` compares: the world, the loops that a user would write, and ours.

Every loop does the same work: K Adam steps of a BERT-Tiny from the same weights on the same batches, the outer loss
after each of the K+1 moments, and the gradients that the walk asks for:

- `one`: both gradients of one loss, the mean uncalibrated outer loss, in one backward pass;
- `paper`: the trunk's gradient of the mean calibrated outer loss in one backward pass, as the paper's code takes it;
- `two`: the trunk's gradient of the calibrated loss, head's and learning rate's of the adversary's own uncalibrated
  one, as the method says: two passes over one loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdm_ray.meta.adversary import Adversary
from sdm_ray.meta.episode import Episode, MetaGradients, Start
from sdm_ray.meta.functional import FlatModel
from sdm_ray.meta.inner_loop import meta_gradients
from sdm_ray.meta.problems import Data, Watch
from sdm_ray.models.trunk import Trunk
from sdm_ray.types import Batch

INNER, OUTER, VOCABULARY, CLASSES, RATE, CLIP = 16, 20, 30_522, 2, 1e-3, 100.0
WORD_QUANTILES = (12, 24, 33, 41, 49, 57, 66, 76, 88, 104, 150)
"""Words of real biographies at 0, 10, ..., 100 %: median 57, 95 % below 119."""
TOKENS_A_WORD, LONGEST = 1.25, 128
OURS = ("unrolled", "adjoint_stored", "adjoint", "truncated", "first_order", "adjoint_compiled")
THEIRS = ("plain", "higher", "higher_cvx", "torchopt")


class World(NamedTuple):
    """One episode's model and batches."""

    trunk: Trunk
    head: Tensor
    inner: list[Batch]
    outer: Batch
    device: torch.device


def make_world(num_steps: int, lengths: str, device: torch.device) -> World:
    """BERT-Tiny with random weights on random tokens (Zipf), 64 each or as long as biographies are."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=512, num_labels=CLASSES,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    trunk = Trunk(model, "native").to(device)
    generator = np.random.default_rng(0)
    inner = [_batch(generator, INNER, lengths, device) for _ in range(num_steps)]
    outer = _batch(generator, OUTER, lengths, device)
    return World(trunk, torch.randn(CLASSES, 128, device=device) * 0.02, inner, outer, device)


def _batch(generator: np.random.Generator, size: int, lengths: str, device: torch.device) -> Batch:
    counts = np.full(size, 64)
    if lengths == "real":
        words = np.interp(generator.random(size), np.linspace(0, 1, len(WORD_QUANTILES)), WORD_QUANTILES)
        counts = np.minimum(np.ceil(words * TOKENS_A_WORD) + 2, LONGEST).astype(int)
    width = -(-int(counts.max()) // 8) * 8
    ids = generator.zipf(1.2, size=(size, width)) % 30_000 + 5
    mask = np.arange(width) < counts[:, None]
    tensors = (torch.from_numpy(ids * mask), torch.from_numpy(mask.astype(np.int64)))
    labels = torch.from_numpy(generator.integers(0, CLASSES, size))
    return Batch(tuple(value.to(device) for value in tensors), labels.to(device))


class Joint(nn.Module):
    """Trunk and head as one module, as a user has them; nothing is left out of the last layer."""

    def __init__(self, trunk: Trunk, head: Tensor) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Parameter(head.clone())

    def forward(self, batch: Batch) -> Tensor:
        scores: Tensor = self.trunk(*batch.inputs) @ self.head.T
        return scores


def make_case(name: str, walk: str, world: World) -> Callable[[], Any]:
    """One outer step of a loop, by name."""
    if name in THEIRS:
        return {"plain": _plain, "higher": _higher, "higher_cvx": _higher, "torchopt": _torchopt}[name](
            world, walk, name == "higher_cvx"
        )
    return _ours(name, walk, world)


def _plain(world: World, walk: str, calibrated: bool) -> Callable[[], None]:
    """K fine-tuning steps."""
    joint = Joint(world.trunk, world.head)
    adam = torch.optim.Adam(joint.parameters(), 1e-4, fused=True)

    def run() -> None:
        for batch in world.inner:
            adam.zero_grad()
            F.cross_entropy(joint(batch), batch.labels).backward()
            adam.step()

    return run


def _higher(world: World, walk: str, calibrated: bool) -> Callable[[], tuple[Tensor, ...]]:
    import higher

    joint = Joint(world.trunk, world.head)
    calibrate = _convex_layer(world) if calibrated else None

    def clip(gradients: list[Tensor]) -> list[Tensor]:
        norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
        scale = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        return [None if g is None else g * scale for g in gradients]  # type: ignore[misc]

    def run() -> tuple[Tensor, ...]:
        rate = torch.tensor(RATE, device=world.device, requires_grad=True)
        optimizer = torch.optim.Adam(joint.parameters(), RATE)
        with higher.innerloop_ctx(joint, optimizer, copy_initial_weights=False) as (model, inner):
            outputs = [model(world.outer)]
            for batch in world.inner:
                loss = F.cross_entropy(model(batch), batch.labels)
                inner.step(loss, grad_callback=clip, override={"lr": [rate]})
                outputs.append(model(world.outer))
            return _gradients(outputs, joint, rate, walk, world.outer.labels, calibrate)

    return run


def _gradients(
    outputs: list[Tensor],
    joint: Joint,
    rate: Tensor,
    walk: str,
    labels: Tensor,
    calibrate: Callable[[list[Tensor]], Tensor] | None,
) -> tuple[Tensor, ...]:
    own = torch.stack([F.cross_entropy(scores, labels) for scores in outputs]).mean()
    blocking = -(own if calibrate is None else calibrate(outputs))
    trunk, options = list(joint.trunk.parameters()), {"allow_unused": True}
    if walk == "one":
        return torch.autograd.grad(-own, [*trunk, joint.head, rate], **options)
    if walk == "paper":
        return torch.autograd.grad(blocking, trunk, **options)
    first = torch.autograd.grad(blocking, trunk, retain_graph=True, **options)
    return (*first, *torch.autograd.grad(own, [joint.head, rate], **options))


def _convex_layer(world: World) -> Callable[[list[Tensor]], Tensor]:
    """The paper's calibration: a convex problem a moment, differentiated through its solution."""
    import cvxpy
    from cvxpylayers.torch import CvxpyLayer

    labels = world.outer.labels

    def calibrate(outputs: list[Tensor]) -> Tensor:
        losses = []
        for scores in outputs:
            weights, given = cvxpy.Variable((CLASSES, CLASSES)), cvxpy.Parameter((OUTER, CLASSES))
            product = given @ weights
            loss = cvxpy.sum(cvxpy.log_sum_exp(product, axis=1) - product[np.arange(OUTER), labels.cpu().numpy()])
            problem = cvxpy.Problem(cvxpy.Minimize(loss), [weights <= 1, weights >= -1])
            (solved,) = CvxpyLayer(problem, parameters=[given], variables=[weights])(scores.double().cpu())
            losses.append(F.cross_entropy(scores @ solved.to(scores), labels))
        return torch.stack(losses).mean()

    return calibrate


def _torchopt(world: World, walk: str, calibrated: bool) -> Callable[[], tuple[Tensor, ...]]:
    import torchopt
    from torch.func import functional_call

    joint = Joint(world.trunk, world.head)
    names = [name for name, _ in joint.named_parameters()]

    def run() -> tuple[Tensor, ...]:
        adam = torchopt.adam(RATE, eps_root=1e-16)
        params = tuple(joint.parameters())
        state = adam.init(params)

        def scores(batch: Batch) -> Tensor:
            result: Tensor = functional_call(joint, dict(zip(names, params, strict=True)), (batch,))
            return result

        outputs = [scores(world.outer)]
        for batch in world.inner:
            loss = F.cross_entropy(scores(batch), batch.labels)
            gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
            updates, state = adam.update(gradients, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
            outputs.append(scores(world.outer))
        rate = torch.zeros((), device=world.device, requires_grad=True)
        return _gradients(outputs, joint, rate, "one" if walk == "one" else walk, world.outer.labels, None)

    return run


def _ours(name: str, walk: str, world: World) -> Callable[[], MetaGradients]:
    model = FlatModel(world.trunk)
    weights = {"harmful_adapted" if walk == "one" else "harmful_adapted_calibrated": 1.0}
    learned, num_steps = walk != "paper", len(world.inner)
    inner = tuple(Batch(tuple(value[None] for value in b.inputs), b.labels[None]) for b in world.inner)
    adversary = Adversary(
        optimizer="adam", batch_size=INNER, num_steps=num_steps, learning_rate=None, schedule="constant",
        adaptation="full", depth=0, rank=0, reset_head=False, noise=0.0,
    )  # fmt: skip
    occurring = torch.cat([batch.inputs[0].flatten().cpu() for batch in (*world.inner, world.outer)])
    compiled, mode = name.endswith("_compiled"), name.removesuffix("_compiled")
    flat = model.initial()

    def run() -> MetaGradients:
        episode = Episode(
            data=Data(inner, (Watch(world.outer, None),)),
            adversary=adversary,
            moments=tuple(range(num_steps + 1)),
            mode=mode,
            truncation_steps=4,
            gradient_clip=CLIP,
            rows=model.plan_rows(occurring, world.device),
        )
        head = world.head[None].clone().requires_grad_(learned)
        rate = torch.full((1,), RATE, device=world.device).log().requires_grad_(learned)
        return meta_gradients(model, Start(flat[None], head, rate), episode, weights, compiled=compiled)

    return run
