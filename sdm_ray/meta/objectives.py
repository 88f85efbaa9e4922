"""Blocking terms: pure functions from an adversary's trajectory to a scalar, in a registry by name.

A term's name is the name of its weight in `BlockingSettings`. `desired_base` is not here: it needs no adversary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.meta.calibration import calibrated_cross_entropy


class Trajectory(NamedTuple):
    """An adversary seen from outside: its scores on one and the same outer harmful batch at every step."""

    logits: Tensor
    """(K+1, B, C): before the first inner step, then after each."""
    labels: Tensor
    """(B,) harmful labels."""


class Term(NamedTuple):
    """A blocking term."""

    function: Callable[[Trajectory], Tensor]
    """Trajectory to 0-d tensor."""
    maximised: bool
    """Whether the trunk ascends it."""
    adapted: bool
    """Whether it concerns an adapted model (else the un-adapted one, and no adversary need be simulated)."""


TERMS: dict[str, Term] = {}


def blocking_term(
    name: str, *, maximised: bool, adapted: bool
) -> Callable[[Callable[[Trajectory], Tensor]], Callable[[Trajectory], Tensor]]:
    """Register a term by name.

    Raises:
        ValueError: when the name is taken.
    """

    def register(function: Callable[[Trajectory], Tensor]) -> Callable[[Trajectory], Tensor]:
        if name in TERMS:
            raise ValueError(f"blocking term {name!r} is already registered")
        TERMS[name] = Term(function, maximised, adapted)
        return function

    return register


def step_losses(trajectory: Trajectory) -> Tensor:
    """The adversary's own cross-entropy at every step, (K+1,)."""
    return _cross_entropies(trajectory).mean(1)


@blocking_term("harmful_base", maximised=True, adapted=False)
def harmful_base(trajectory: Trajectory) -> Tensor:
    """Harmful cross-entropy of the un-adapted model: adversarial censoring (Edwards and Storkey, arXiv 1511.05897).

    Unbounded above, as published: a large weight or learning rate buys confident errors, not ignorance.
    """
    return F.cross_entropy(trajectory.logits[0], trajectory.labels)


@blocking_term("harmful_adapted", maximised=True, adapted=True)
def harmful_adapted(trajectory: Trajectory) -> Tensor:
    """Mean over steps of the adapted harmful cross-entropy (MLAC, arXiv 2211.14946); unbounded above."""
    return step_losses(trajectory).mean()


@blocking_term("harmful_adapted_calibrated", maximised=True, adapted=True)
def harmful_adapted_calibrated(trajectory: Trajectory) -> Tensor:
    """Mean over steps of the calibrated adapted harmful cross-entropy (MLAC, arXiv 2211.14946); at most log C."""
    return calibrated_cross_entropy(trajectory.logits, trajectory.labels).mean()


@blocking_term("harmful_adapted_clamped", maximised=True, adapted=True)
def harmful_adapted_clamped(trajectory: Trajectory) -> Tensor:
    """Mean over steps of the adapted harmful cross-entropy, each example's clamped at log C.

    The clamped variant of MLAC that Tamirisa et al. compare with (MLAC-AR; TAR, arXiv 2408.00761): an example that is
    already guessed no better than chance pulls no more.
    """
    chance = math.log(trajectory.logits.shape[-1])
    return _cross_entropies(trajectory).clamp_max(chance).mean()


def blocking_loss(trajectory: Trajectory, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """What the trunk minimises: the weighted sum of terms, maximised ones with a minus.

    Args:
        trajectory: of one adversary.
        weights: term to weight above 0.

    Returns:
        The sum, and every term's own value (detached, with its natural sign) by name.
    """
    total = trajectory.logits.new_zeros(())
    values = {}
    for name, weight in weights.items():
        term = TERMS[name]
        value = term.function(trajectory)
        total = total - weight * value if term.maximised else total + weight * value
        values[name] = value.detach()
    return total, values


def accuracies(trajectory: Trajectory) -> Tensor:
    """Share of the outer batch that the adversary gets right at every step, (K+1,)."""
    return (trajectory.logits.detach().argmax(-1) == trajectory.labels).to(torch.float32).mean(1)


def _cross_entropies(trajectory: Trajectory) -> Tensor:
    logits, labels = trajectory
    return F.cross_entropy(logits.mT, labels.expand(logits.shape[:2]), reduction="none")
