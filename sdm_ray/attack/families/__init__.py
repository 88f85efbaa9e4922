"""The families of attackers, by name; each has a search space of its own.

A family turns a point of its space into an `Attacker`; how attackers of a family run is `engine.executor`'s business.
"""

from __future__ import annotations

from sdm_ray.attack.families import composed, edits, gradient, probes, rescale, token_heads, token_probe
from sdm_ray.attack.families.base import HEAD_RATE_FACTOR, Attacker, Facts, Family, Phase
from sdm_ray.core.errors import UsageError

__all__ = ["FAMILIES", "HEAD_RATE_FACTOR", "Attacker", "Facts", "Family", "Phase", "register", "the_family"]

FAMILIES: dict[str, Family] = {}
"""Families by name."""


def register(family: Family) -> None:
    """Add a family, to be named in `attack.families`.

    Raises:
        ValueError: where the name is taken.
    """
    if family.name in FAMILIES:
        raise ValueError(f"an attack family {family.name!r} is registered already")
    FAMILIES[family.name] = family


def the_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in FAMILIES:
        raise UsageError(f"attack.families: {name!r} is not known; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


for _family in (
    gradient.FINE_TUNE,
    gradient.FULL,
    gradient.HEAD,
    gradient.PARTIAL,
    gradient.LORA,
    token_heads.ATTENTION_HEAD,
    probes.LINEAR_PROBE,
    probes.LOGISTIC_REGRESSION,
    probes.KNN,
    rescale.RESCALE,
    token_probe.TOKEN_PROBE,
    edits.NOISE,
    edits.REINIT,
    edits.PRUNE,
    edits.INTERPOLATE,
    edits.GRAFT,
    edits.BENIGN_FIRST,
    edits.MASKED_LM,
    composed.COMPOSED,
):
    register(_family)
