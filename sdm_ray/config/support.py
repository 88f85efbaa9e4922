"""The support of a distribution of adversaries, and a check whether two supports overlap.

Held-out attackers must be disjoint from the adversaries that a defence was trained against. Simulated adversaries and
attackers have supports of the same form, so that this can be checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

RELEASED = "released"
"""Name of weights that are not edited."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """The set of adversaries that a distribution can produce; None in a dimension means no restriction."""

    name: str
    """Description of the adversaries."""
    optimizers: frozenset[str] | None = None
    """Optimisers."""
    schedules: frozenset[str] | None = None
    """Schedules of the learning rate."""
    adaptations: frozenset[str] | None = None
    """What is trained: `full`, `head`, `partial`, `lora`, or an attacker's other kinds."""
    edits: frozenset[str] | None = None
    """Edit of the weights before training, by the attack's name; `RELEASED` for none."""
    edit_amount: tuple[float, float] | None = None
    """Smallest and largest strength of that edit, 0 for none."""
    heads: frozenset[str] | None = None
    """Initial head: `reset`, `meta_learned`, or one that reads tokens: `attention`, `maximum`."""
    ranks: frozenset[int] | None = None
    """Ranks of low-rank factors."""
    batch_sizes: frozenset[int] | None = None
    """Batch sizes."""
    learning_rate: tuple[float, float] | None = None
    """Smallest and largest learning rate."""
    num_steps: tuple[int, int] | None = None
    """Fewest and most steps."""
    num_examples: tuple[int, int] | None = None
    """Fewest and most labelled examples."""


def overlaps(first: Iterable[Support], second: Iterable[Support]) -> list[str]:
    """Descriptions of the overlaps between two lists of supports; empty if they are disjoint.

    Two supports are disjoint if some dimension that both restrict has no common value.
    """
    others = list(second)
    return [
        f"{one.name} and {other.name} can both give {_common(one, other)}"
        for one in first
        for other in others
        if all(_meet(getattr(one, name), getattr(other, name)) for name in _DIMENSIONS)
    ]


def _meet(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return True
    if isinstance(one, frozenset):
        return bool(one & other)
    return bool(max(one[0], other[0]) <= min(one[1], other[1]))


def _common(one: Support, other: Support) -> str:
    parts = []
    for name in _DIMENSIONS:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is None or theirs is None:
            continue
        if isinstance(mine, frozenset):
            values = ", ".join(str(value) for value in sorted(mine & theirs))
        else:
            values = f"{max(mine[0], theirs[0]):g} to {min(mine[1], theirs[1]):g}"
        parts.append(f"{name.replace('_', ' ')} {values}")
    return "; ".join(parts) or "any adversary"


_DIMENSIONS = tuple(field.name for field in fields(Support) if field.name != "name")
