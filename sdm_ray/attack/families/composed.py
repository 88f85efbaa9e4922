"""Sequences of weight edits before any kind of training, against defences that a single edit does not undo."""

from __future__ import annotations

from collections.abc import Callable

from sdm_ray.attack.families.base import (
    HEAD_RATE_FACTOR,
    LORA_RATE_FACTOR,
    Attacker,
    Facts,
    Family,
    fine_tuning,
    fine_tuning_space,
)
from sdm_ray.attack.families.rescale import RESCALINGS
from sdm_ray.attack.space import Choice, Integer, LogFloat, Point, Space
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.errors import UsageError

AMOUNTS: dict[str, tuple[float, ...]] = {
    **{name: (0.5, 0.75, 1.0) for name in RESCALINGS},  # noqa: C420 - fromkeys narrows the type of the values
    "noise": (0.03, 0.1, 0.3),
    "reinit": (1.0, 2.0, 3.0),
    "prune": (0.1, 0.3, 0.5),
    "benign_first": (50.0, 200.0, 600.0),
    "masked_lm": (50.0, 200.0, 600.0),
}
"""Low, medium and high amount of each edit that a chain may contain. Edits that need the public encoder are not among
them: they are reported separately."""
NEEDS: dict[str, Callable[[Facts], str]] = {
    "reinit": lambda facts: "" if facts.num_depths > 1 and facts.can_redraw else "fresh weights of several blocks",
    "masked_lm": lambda facts: "" if facts.has_masked_lm else "the public encoder's masked-LM head",
}
"""By edit: function for what a model lacks for it; edits that are not listed apply to every model."""
TRAINS = ("full", "full", "full", "lora", "upper", "head", "probe")
"""What is trained after the edits; `full` is repeated so that it is sampled more often."""
PROBES = ("linear_probe", "logistic_regression")


def check_chains(chains: tuple[str, ...]) -> None:
    """Check the edits of chains.

    Raises:
        UsageError: for an unknown or repeated edit; the message names the chain and the edit.
    """
    for chain in chains:
        names = chain.split("+")
        unknown = [name for name in names if name not in AMOUNTS]
        if unknown:
            raise UsageError(
                f"attack.edit_chains: {chain!r} names {unknown[0]!r}, which cannot be part of a chain; it takes "
                f"{', '.join(AMOUNTS)}, with + between them"
            )
        if len(set(names)) < len(names):
            raise UsageError(f"attack.edit_chains: {chain!r} names an edit twice; name each of them once")


def possible(chains: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
    """The chains that can be applied to a model."""
    return tuple(chain for chain in chains if not any(lacking(name, facts) for name in chain.split("+")))


def lacking(edit: str, facts: Facts) -> str:
    """What a model lacks for an edit, as a phrase; empty if the edit can be applied."""
    return NEEDS[edit](facts) if edit in NEEDS else ""


def missing_for_chains(chains: tuple[str, ...], facts: Facts) -> str:
    """What a model lacks if no chain can be applied, as a phrase; empty if one can."""
    if possible(chains, facts):
        return ""
    names = dict.fromkeys(name for chain in chains for name in chain.split("+"))
    return "; ".join(lacking(name, facts) for name in names if lacking(name, facts))


def _space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    chains = possible(settings.edit_chains, facts)
    absent = {"lora": not facts.has_linear_layers, "upper": facts.num_depths < 2}
    space = {"edit": Choice(chains)}
    space |= {f"strength_{place}": Choice((0, 1, 2)) for place in range(max(chain.count("+") for chain in chains) + 1)}
    space |= {"trains": Choice(tuple(name for name in TRAINS if not absent.get(name)))}
    own: Space = {
        "rank": Choice(settings.lora_ranks),
        "depth": Integer(1, max(1, facts.num_depths - 1)),
        "probe": Choice(PROBES),
        "layer": Choice((-1, *range(facts.num_hidden_states))),
        "penalty": LogFloat(1e-4, 1e2),
    }
    return {**space, **fine_tuning_space(settings, num_examples), **own}


def _attacker(point: Point, num_examples: int) -> Attacker:
    names, trains = point["edit"].split("+"), point["trains"]
    edits = {
        "edit": point["edit"],
        "amounts": tuple(AMOUNTS[name][point[f"strength_{place}"]] for place, name in enumerate(names)),
        "trains": trains,
    }
    if trains == "probe":
        probe = {"probe": point["probe"], "layer": point["layer"], "amount": point["penalty"]}
        return Attacker(family="composed", num_examples=num_examples, **edits, **probe)
    factor = {"lora": LORA_RATE_FACTOR, "head": HEAD_RATE_FACTOR}.get(trains, 1.0)
    own = {"lora": {"rank": point["rank"]}, "upper": {"depth": point["depth"]}}.get(trains, {})
    return fine_tuning("composed", point, num_examples, factor, **edits, **own)


COMPOSED = Family(
    "composed",
    "several edits of the weights one after the other (`attack.edit_chains`), then any training or a probe",
    _space,
    _attacker,
)
