"""The registry of blocking terms: inputs and sign of each term, and terms from a user's modules.

A term has the name of its weight in `BlockingSettings`; a user's term has its key in `blocking.custom`. `desired_base`
is not registered: it is the loss to which the terms are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from sdm_ray.config import BlockingSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.extensions import import_own
from sdm_ray.core.suggest import did_you_mean

Reads = Literal[
    "harmful_base",
    "harmful_adapted",
    "desired_adapted",
    "desired_adapted_harmful",
    "predicted",
    "inner_gradient",
    "gradients",
    "masked_lm",
    "hidden_states",
    "harmful_hidden",
    "weights",
    "midpoint",
    "harmful_step",
    "desired_after_step",
    "desired_base",
]
"""The inputs of a term. S evaluated steps, A adversaries, B examples, C classes, D features, N variables of an
adversary or predicted tokens, P parameters, V tokens of the vocabulary, H hidden states, L positions of a text.

| reads | function |
| --- | --- |
| harmful_base | `(Trajectory)`: the harmful task, un-adapted model (step 0) |
| harmful_adapted | `(Trajectory)`: the harmful task, model adapted to it |
| desired_adapted | `(Trajectory)`: the desired task, model adapted to it |
| desired_adapted_harmful | `(Trajectory)`: the harmful task, model adapted to the desired one |
| predicted | `(Trajectory, predictors (S, C, D))`: as harmful_adapted, with a linear predictor for each step |
| inner_gradient | `(gradient (A, N))`: gradients of an inner step; the caller averages over steps |
| gradients | `(harmful (P,), desired (P,))`: gradients of both tasks at the un-adapted model |
| masked_lm | `(logits (N, V), labels (N,))`: predicted tokens of general text |
| hidden_states | `(hidden (H, B, L, D), reference (H, B, L, D), mask (B, L))`: the model's and the original encoder's |
| harmful_hidden | `(hidden (H, B, L, D), noise (H, B, L, D), mask (B, L))`: of the harmful batch, un-adapted model |
| weights | `(trunk (P,), original (P,), bound or None)`: the current and the original encoder's weights |
| midpoint | `(Trajectory, bound or None)`: the harmful task, weights halfway between these |
| harmful_step | `(before 0-d, after 0-d)`: harmful losses before and after one step of fixed length |
| desired_after_step | `(Trajectory, class)`: the desired task after one step on the harmful loss |
| desired_base | `(Trajectory)`: the desired task, un-adapted model (step 0) |

Every function returns a 0-d tensor that can be differentiated once, and never synchronises with the device.
"""
TRAJECTORY_READS = ("harmful_base", "harmful_adapted", "desired_adapted", "desired_adapted_harmful")
"""The inputs that a user's own term may have."""


class Trajectory(NamedTuple):
    """Outputs of adversaries on one outer batch at S evaluated steps."""

    logits: Tensor
    """(S, B, C), steps of one adversary, or of several adversaries one after the other."""
    features: Tensor
    """(S, B, D), input of the head."""
    labels: Tensor
    """(B,) int64 class indices, or floating-point targets of a regression (then C is 1)."""
    steps: tuple[int, ...]
    """S inner steps; 0 is the state before the first step."""


class Term(NamedTuple):
    """A blocking term."""

    function: Callable[..., Tensor]
    """See `Reads`."""
    reads: Reads
    """Its inputs."""
    maximised: bool
    """Whether the trunk maximises it."""


TERMS: dict[str, Term] = {}

TermFunction = TypeVar("TermFunction", bound=Callable[..., Tensor])


def blocking_term(name: str, *, reads: Reads, maximised: bool) -> Callable[[TermFunction], TermFunction]:
    """Register a term by name.

    A function of the same module and name may be registered again (a notebook cell that runs twice) and replaces the
    earlier one.

    Args:
        name: name of the term's weight.
        reads: its inputs; one of `TRAJECTORY_READS` for a term that `BlockingSettings` does not list.
        maximised: whether the trunk maximises it.

    Raises:
        ValueError: if another function has that name, or `reads` is not allowed.
    """
    allowed = get_args(Reads) if name in BlockingSettings.model_fields else TRAJECTORY_READS
    if reads not in allowed:
        raise ValueError(f"blocking term {name!r} cannot read {reads!r}; choose one of {', '.join(allowed)}")

    def register(function: TermFunction) -> TermFunction:
        if name in TERMS and _origin(TERMS[name].function) != _origin(function):
            raise ValueError(f"blocking term {name!r} is already registered; choose another name")
        TERMS[name] = Term(function, reads, maximised)
        return function

    return register


def load_terms(modules: tuple[str, ...], names: Iterable[str]) -> None:
    """Import the modules that register terms, and check that all names are registered. Idempotent.

    Args:
        modules: dotted names of modules on Python's path or in the working directory.
        names: names of the terms that have a weight.

    Raises:
        UsageError: for a module that cannot be imported, or an unknown term.
    """
    for module in modules:
        import_own(module, "train.term_modules")
    unknown = [name for name in names if name not in TERMS]
    if unknown:
        question = did_you_mean(unknown[0], TERMS)
        hint = f"; {question}" if question else ""
        raise UsageError(
            f"train.blocking.custom: no term is called {', '.join(map(repr, unknown))}, only "
            f"{', '.join(sorted(TERMS))}{hint} (`modules` names the modules that register others)"
        )


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss that the trunk minimises: the weighted sum of terms, maximised ones negated.

    Args:
        values: 0-d value by term; at least one.
        weights: weight by term, for at least the terms of `values`.
    """
    signed = [weights[name] * (-value if TERMS[name].maximised else value) for name, value in values.items()]
    return torch.stack(signed).sum()


def _origin(function: Callable[..., Tensor]) -> tuple[str, str]:
    return function.__module__, function.__qualname__
