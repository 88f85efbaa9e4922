"""Blocking terms by name: what each reads, which way the trunk takes it, and terms that a user's module brings along.

A term's name is the name of its weight in `BlockingSettings` (a user's: its key in `blocking.custom`). `desired_base`
is not here: it is the loss that everything else is added to.
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
]
"""What a term is a function of; S evaluated steps, A adversaries, B examples, C classes, D features, P parameters.

| reads | function |
| --- | --- |
| harmful_base | `(Trajectory)`: the harmful task, un-adapted model (step 0) |
| harmful_adapted | `(Trajectory)`: the harmful task, model adapted to it |
| desired_adapted | `(Trajectory)`: the desired task, model adapted to it |
| desired_adapted_harmful | `(Trajectory)`: the harmful task, model adapted to the desired one |
| predicted | `(Trajectory, predictors (S, C, D))`: as harmful_adapted, with a linear predictor of each step |
| inner_gradient | `(gradient (A, N))`: gradients of an inner step; the caller takes the mean over steps |
| gradients | `(harmful (P,), desired (P,))`: gradients of both tasks at the un-adapted model |
| masked_lm | `(logits (N, V), labels (N,))`: predicted tokens of general text |
| hidden_states | `(hidden (H, B, L, D), reference (H, B, L, D), mask (B, L))`: the model's and the original encoder's |

Every function returns a 0-d tensor that can be differentiated once, and never waits for the device.
"""
TRAJECTORY_READS = ("harmful_base", "harmful_adapted", "desired_adapted", "desired_adapted_harmful")
"""What a term of one's own may read."""


class Trajectory(NamedTuple):
    """Outputs of adversaries on one outer batch at S evaluated steps."""

    logits: Tensor
    """(S, B, C): steps of one adversary, or of several one after the other."""
    features: Tensor
    """(S, B, D): what the head makes the scores from."""
    labels: Tensor
    """(B,) int64 class indices, or floating-point targets of a regression (then C is 1)."""
    steps: tuple[int, ...]
    """(S,) the inner step of each; 0 is before the first."""


class Term(NamedTuple):
    """A blocking term."""

    function: Callable[..., Tensor]
    """See `Reads`."""
    reads: Reads
    """What it is a function of."""
    maximised: bool
    """Whether the trunk ascends it."""


TERMS: dict[str, Term] = {}

TermFunction = TypeVar("TermFunction", bound=Callable[..., Tensor])


def blocking_term(name: str, *, reads: Reads, maximised: bool) -> Callable[[TermFunction], TermFunction]:
    """Register a term by name.

    The same function may be registered again, as happens when a notebook's cell runs twice; the later one counts.

    Args:
        name: of its weight.
        reads: what it is a function of; one of `TRAJECTORY_READS` for a term that `BlockingSettings` does not list.
        maximised: whether the trunk ascends it.

    Raises:
        ValueError: when another function has that name, or for another `reads`.
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
    """Import the modules that register terms, and refuse names that no term has. Doing so again changes nothing.

    Args:
        modules: dotted names of modules on Python's path or in the working directory.
        names: terms that have a weight.

    Raises:
        UsageError: for a module that cannot be imported, or a name that is not known.
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
    """What the trunk minimises: the weighted sum of terms, maximised ones with a minus.

    Args:
        values: term to its 0-d value; at least one.
        weights: term to weight, for at least these terms.
    """
    signed = [weights[name] * (-value if TERMS[name].maximised else value) for name, value in values.items()]
    return torch.stack(signed).sum()


def _origin(function: Callable[..., Tensor]) -> tuple[str, str]:
    return function.__module__, function.__qualname__
