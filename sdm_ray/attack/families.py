"""What an attacker is, and the families of attackers that are searched, each with its own space.

A family turns a point of its space into an `Attacker`; how attackers of a family run is `execute`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sdm_ray.attack.search import Chance, Choice, Integer, LogFloat, Point, Space
from sdm_ray.config.attack import AttackSettings

Phase = Literal["search", "rerun"]

FROZEN_RATE_FACTOR = 10.0
"""A head on a frozen trunk trains at this multiple of the searched learning rate."""


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """One fine-tune: hyper-parameters and what its seeds derive from. Equal for all models, which pairs them."""

    family: str
    num_examples: int
    learning_rate: float
    """Adam's learning rate (for a frozen trunk already multiplied)."""
    num_steps: int
    batch_size: int
    frozen: bool
    """Train the head alone."""
    phase: Phase = "search"
    trial: int = 0
    """Number of the search point."""
    seed_index: int = 0
    """Chooses subset, order and head within the phase."""
    attempt: int = 0
    """1 for the retry of a failed fine-tune: same subset, another order and head."""
    optimizer: str = "adam"


class Family(NamedTuple):
    """A kind of attack."""

    name: str
    space: Callable[[AttackSettings, int], Space]
    """Search space, given the number of examples n."""
    attacker: Callable[[Point, int], Attacker]
    """The attacker at a point, given n."""


def _fine_tune_space(settings: AttackSettings, num_examples: int) -> Space:
    sizes = tuple(size for size in settings.batch_sizes if size <= num_examples) or (num_examples,)
    return {
        "learning_rate": LogFloat(settings.learning_rate.low, settings.learning_rate.high),
        "num_steps": Integer(settings.num_steps_min, settings.num_steps_max),
        "batch_size": Choice(sizes),
        "frozen": Chance(settings.frozen_probability),
    }


def _fine_tune(point: Point, num_examples: int) -> Attacker:
    rate = point["learning_rate"] * (FROZEN_RATE_FACTOR if point["frozen"] else 1.0)
    return Attacker(
        family="fine_tune",
        num_examples=num_examples,
        learning_rate=rate,
        num_steps=point["num_steps"],
        batch_size=point["batch_size"],
        frozen=point["frozen"],
    )


FAMILIES: dict[str, Family] = {"fine_tune": Family("fine_tune", _fine_tune_space, _fine_tune)}
"""Families by name: `fine_tune` is Adam from a fresh head, of everything or of the head alone."""
