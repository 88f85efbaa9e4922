"""An episode: where simulated adversaries start, what they do, and the meta-gradients that it returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.flat_model import FlatModel, Rows
from sdm_ray.meta.inner.head_reader import HeadReader
from sdm_ray.meta.inner.memory import ModeChooser
from sdm_ray.meta.inner.optim import OptimizerState
from sdm_ray.meta.inner.problems import Data, HeadProblem, LoraProblem, Problem, UpperProblem
from sdm_ray.meta.objectives import Trajectory

FROZEN_RATE_FACTOR = 10.0
"""Factor of the learning rate of an adversary that trains the head alone."""


class Start(NamedTuple):
    """Where A adversaries start. Meta-gradients are taken with respect to those of its tensors that require them."""

    trunk: Tensor
    """(1, P) flat trunk parameters that all share, or (A, P)."""
    head: Tensor
    """(A, C, D) heads; (A, C + 1, D) with the query as last row for `attention`."""
    log_learning_rate: Tensor
    """(A,) natural logarithms of the learning rates."""
    displacement: Tensor | None = None
    """(A, P') constant that is added to the trunk, in the layout of the episode's rows: a persistent adversary's
    displacement from the trunk, or the shift of an edited start."""
    state: OptimizerState | None = None
    """State of the optimiser over the adversary's variables, in that layout; None initialises it."""
    factor: Tensor | None = None
    """(A, P') constant that the trunk is multiplied by first, in that layout: the factor of an edited start."""


class Episode(NamedTuple):
    """The inner loop of A adversaries that run as one batch, and which of its steps are evaluated."""

    data: Data
    """Inner batches and evaluation batches, with the token ids of the data."""
    adversary: Adversary
    """Optimiser, schedule, and what is trained; batch size, head and learning rate are read from data and start."""
    evaluated_steps: tuple[int, ...]
    """Steps (0 is before the first) at which terms of adapted models are computed; sorted."""
    mode: str
    """Gradient mode: `auto`, or a strategy of `meta.inner.loop`."""
    truncation_steps: int = 0
    """Updates that `truncated` differentiates."""
    gradient_clip: float = float("inf")
    """Norm that inner gradients are clipped to."""
    rows: Rows | None = None
    """Rows of the token embedding that occur; None for all of them."""
    noise: tuple[float, ...] = ()
    """(A,) standard deviations of each adversary's parameter noise, relative to each parameter's root mean square."""


class Execution(NamedTuple):
    """How episodes are computed."""

    chooser: ModeChooser | None = None
    """Resolves the mode `auto`, and falls back where memory runs out; None makes one for the episode."""
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    """Context of first derivatives."""
    compiled: bool = False
    """Compile the step functions of modes that keep no graph; `auto` is then `adjoint`. Adversaries that train
    the head alone, or have dropout, are computed eagerly all the same."""


class MetaGradients(NamedTuple):
    """Meta-gradients of an episode: sums over its adversaries, which share their weights equally."""

    trunk: Tensor
    """(1, P) or (A, P), as the start's: gradient of the blocking loss."""
    head: Tensor | None
    """(A, C, D) gradient of each adversary's own loss (of the blocking loss where it adapts to the desired task); None
    where the start's head takes none."""
    log_learning_rate: Tensor | None
    """(A,) gradient of the log learning rates, of the same loss; None where they take none."""
    predictors: Tensor | None
    """(K+1, C, D) gradient of the predictors' own loss."""
    fixed_head: Tensor | None
    """(C, D) gradient of the harmful head beside an adaptation to the desired task."""
    values: dict[str, Tensor]
    """Blocking terms by name, means over adversaries."""
    trajectory: Trajectory
    """Detached, on the task that is adapted to."""
    final: Tensor
    """(A, N) variables after the last step."""
    final_state: OptimizerState
    """The optimiser's state after the last step."""


def make_problem(model: FlatModel, head_shape: tuple[int, int], adversary: Adversary) -> Problem:
    """The variables that an adversary trains; one object for all adversaries that train the same."""
    key = ("problem", head_shape, adversary.adaptation, adversary.depth, adversary.rank, adversary.head_kind)
    if key not in model.cache:
        model.cache[key] = _new_problem(model, head_shape, adversary)
    problem: Problem = model.cache[key]
    return problem


def _new_problem(model: FlatModel, head_shape: tuple[int, int], adversary: Adversary) -> Problem:
    reader = HeadReader(model, head_shape, adversary.head_kind)
    if adversary.adaptation == "head":
        return HeadProblem(model, reader)
    if adversary.adaptation == "lora":
        return LoraProblem(model, reader, adversary.rank)
    return UpperProblem(model, reader, adversary.depth if adversary.adaptation == "partial" else 0)


def parameter_noise(model: FlatModel, trunk: Tensor, scales: tuple[float, ...], seed: int) -> Tensor:
    """(A, P) Gaussian noise with standard deviations of `scales` (A,) times each parameter's root mean square.

    Args:
        model: gives the layout of the parameters.
        trunk: (A or 1, P) parameters.
        scales: one an adversary.
        seed: of the draws, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(scales), trunk.shape[1], generator=generator)
    noise = (drawn * torch.tensor(scales)[:, None]).to(trunk, non_blocking=True)
    pieces = zip(model.layout.pieces(noise), model.layout.pieces(trunk.detach()), strict=True)
    return torch.cat([part * value.square().mean(-1, keepdim=True).sqrt() for part, value in pieces], -1)
