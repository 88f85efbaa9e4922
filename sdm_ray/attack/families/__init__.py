"""The attack families by name.

A family has a search space and converts a point of it to an `Attacker`; `engine.executor` runs attackers.
"""

from __future__ import annotations

from collections.abc import Iterable

from sdm_ray.attack.families import composed, edits, gradient, probes, rescale, token_heads, token_probe
from sdm_ray.attack.families.base import (
    HEAD_RATE_FACTOR,
    OWN_EDITS,
    Attacker,
    Facts,
    Family,
    Phase,
    fine_tuning,
    fine_tuning_space,
)
from sdm_ray.core.errors import UsageError
from sdm_ray.core.extensions import source_digest

__all__ = [
    "FAMILIES",
    "HEAD_RATE_FACTOR",
    "Attacker",
    "Facts",
    "Family",
    "Phase",
    "fine_tuning",
    "fine_tuning_space",
    "own_families",
    "register",
    "the_family",
]

FAMILIES: dict[str, Family] = {}
"""Families by name."""


def register(family: Family) -> None:
    """Add a family under its name, for use in `attack.families`.

    The same module may register a name again (a notebook cell that runs twice), which replaces the earlier family.

    Raises:
        ValueError: if another module has registered the name.
    """
    known = FAMILIES.get(family.name)
    if known is not None and (_module(known) != _module(family) or _module(known).startswith("sdm_ray.")):
        raise ValueError(f"an attack family {family.name!r} is registered already; choose another name")
    FAMILIES[family.name] = family
    if family.edit is not None:
        OWN_EDITS[family.name] = family.edit


def own_families(names: Iterable[str]) -> dict[str, str]:
    """Source digests of the user's families among `names`, by name; they are part of an attack's identity."""
    modules = {name: _module(FAMILIES[name]) for name in names if name in FAMILIES}
    return {name: source_digest(module) for name, module in modules.items() if not module.startswith("sdm_ray.")}


def _module(family: Family) -> str:
    return str(getattr(family.attacker, "__module__", ""))


def the_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in FAMILIES:
        raise UsageError(
            f"attack.families: {name!r} is not known; known: {', '.join(FAMILIES)} (`modules` names the modules that "
            "register others)"
        )
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
