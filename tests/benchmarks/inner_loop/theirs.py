"""The loops that a user would write, for `tests.benchmarks.inner_loop`; see there for the walks.

`plain` is K fine-tuning steps. `higher` and `torchopt` are the packages' own loops with their Adam, the clip of the
inner gradient, and a learning rate that takes a gradient; `higher_cvx` calibrates every moment by a differentiable
convex problem of `cvxpylayers`, as the paper's code does. All of them differentiate the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sdm_ray.core.types import Batch
from sdm_ray.models.trunk import Trunk
from tests.benchmarks.inner_loop.world import CLASSES, World

RATE, CLIP = 1e-3, 100.0
PACKAGES = {"higher": "higher", "higher_cvx": "cvxpylayers", "torchopt": "torchopt"}
"""What a loop needs that need not be installed."""
THEIRS = ("plain", *PACKAGES)

Gradients = tuple[Tensor | None, ...]
"""Of the trunk's parameters, then of head and learning rate where the walk asks for them."""


class Joint(nn.Module):
    """Trunk and head as one module, as a user has them; nothing is left out of the last layer."""

    def __init__(self, trunk: Trunk, head: Tensor) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Parameter(head.clone())

    def forward(self, batch: Batch) -> Tensor:
        scores: Tensor = self.trunk(*batch.inputs) @ self.head.T
        return scores


def their_case(name: str, walk: str, world: World) -> Callable[[], Gradients | None]:
    """One outer step of a loop, by name."""
    joint, inner = Joint(world.trunk, world.head), [batch.at(0) for batch in world.inner]
    if name == "plain":
        return _plain(joint, inner)
    calibrate = _convex_layer(world.outer.labels) if name == "higher_cvx" else None
    take = partial(_gradients, joint=joint, walk=walk, labels=world.outer.labels, calibrate=calibrate)
    return (_torchopt if name == "torchopt" else _higher)(joint, inner, world.outer, take)


def _plain(joint: Joint, inner: list[Batch]) -> Callable[[], None]:
    adam = torch.optim.Adam(joint.parameters(), 1e-4, fused=True)

    def run() -> None:
        for batch in inner:
            adam.zero_grad()
            F.cross_entropy(joint(batch), batch.labels).backward()
            adam.step()

    return run


Take = Callable[[list[Tensor], Tensor], Gradients]


def _higher(joint: Joint, inner: list[Batch], outer: Batch, take: Take) -> Callable[[], Gradients]:
    import higher

    optimizer = torch.optim.Adam(joint.parameters(), RATE)

    def clip(gradients: list[Tensor | None]) -> list[Tensor | None]:
        norm = torch.stack([value.square().sum() for value in gradients if value is not None]).sum().sqrt()
        scale = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        return [None if value is None else value * scale for value in gradients]

    def run() -> Gradients:
        rate = torch.tensor(RATE, device=outer.labels.device, requires_grad=True)
        with higher.innerloop_ctx(joint, optimizer, copy_initial_weights=False) as (model, steps):
            outputs = [model(outer)]
            for step, batch in enumerate(inner, start=1):
                loss = F.cross_entropy(model(batch), batch.labels)
                # It adds eps before the bias correction; scaled like this, its steps are those of torch.optim.Adam.
                eps = 1e-8 * (1 - 0.999**step) ** 0.5
                steps.step(loss, grad_callback=clip, override={"lr": [rate], "eps": [eps]})
                outputs.append(model(outer))
            return take(outputs, rate)

    return run


def _torchopt(joint: Joint, inner: list[Batch], outer: Batch, take: Take) -> Callable[[], Gradients]:
    import torchopt

    names, start = zip(*joint.named_parameters(), strict=True)

    def run() -> Gradients:
        rate = torch.tensor(RATE, device=outer.labels.device, requires_grad=True)
        # Its derivative is NaN where a second moment is zero unless eps_root is above 0.
        optimizer = torchopt.chain(torchopt.clip.clip_grad_norm(CLIP), torchopt.adam(rate, eps_root=1e-30))
        params, state = start, optimizer.init(start)

        def scores(batch: Batch) -> Tensor:
            result: Tensor = functional_call(joint, dict(zip(names, params, strict=True)), (batch,))
            return result

        outputs = [scores(outer)]
        for batch in inner:
            loss = F.cross_entropy(scores(batch), batch.labels)
            gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
            updates, state = optimizer.update(gradients, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
            outputs.append(scores(outer))
        return take(outputs, rate)

    return run


def _gradients(
    outputs: list[Tensor],
    rate: Tensor,
    *,
    joint: Joint,
    walk: str,
    labels: Tensor,
    calibrate: Callable[[list[Tensor]], Tensor] | None,
) -> Gradients:
    own = torch.stack([F.cross_entropy(scores, labels) for scores in outputs]).mean()
    blocking = -(own if calibrate is None else calibrate(outputs))
    trunk, adversary = list(joint.trunk.parameters()), [joint.head, rate]
    if walk == "one":
        return torch.autograd.grad(blocking, [*trunk, *adversary], allow_unused=True)
    if walk == "paper":
        return torch.autograd.grad(blocking, trunk, allow_unused=True)
    first = torch.autograd.grad(blocking, trunk, retain_graph=True, allow_unused=True)
    return (*first, *torch.autograd.grad(own, adversary, allow_unused=True))


def _convex_layer(labels: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Calibration by a convex problem a moment, differentiated through its solution."""
    import cvxpy
    from cvxpylayers.torch import CvxpyLayer

    def calibrate(outputs: list[Tensor]) -> Tensor:
        losses, rows = [], np.arange(len(labels))
        for scores in outputs:
            weights, given = cvxpy.Variable((CLASSES, CLASSES)), cvxpy.Parameter((len(labels), CLASSES))
            product = given @ weights
            loss = cvxpy.sum(cvxpy.log_sum_exp(product, axis=1) - product[rows, labels.cpu().numpy()])
            problem = cvxpy.Problem(cvxpy.Minimize(loss), [weights <= 1, weights >= -1])
            (solved,) = CvxpyLayer(problem, parameters=[given], variables=[weights])(scores.double().cpu())
            losses.append(F.cross_entropy(scores @ solved.to(scores), labels))
        return torch.stack(losses).mean()

    return calibrate
