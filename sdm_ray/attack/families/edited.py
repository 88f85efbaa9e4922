"""Families that change released weights first and fine-tune them then.

A defence may hold only in the neighbourhood that it was trained in: noise, re-initialised layers, pruning or a step
back towards the public encoder lead out of it; so does training on something harmless.
"""

from __future__ import annotations

from collections.abc import Callable

from sdm_ray.attack.families.base import Attacker, Facts, Family, fine_tuning, fine_tuning_space
from sdm_ray.attack.space import Choice, Point, Space
from sdm_ray.config.attack import AttackSettings


def _space(amounts: Callable[[Facts], tuple[float, ...]]) -> Callable[[AttackSettings, int, Facts], Space]:
    def space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
        return fine_tuning_space(settings, num_examples) | {"amount": Choice(amounts(facts))}

    return space


def _attacker(name: str) -> Callable[[Point, int], Attacker]:
    def attacker(point: Point, num_examples: int) -> Attacker:
        return fine_tuning(name, point, num_examples, edit=name, amount=float(point["amount"]))

    return attacker


def _family(
    name: str,
    words: str,
    amounts: Callable[[Facts], tuple[float, ...]],
    missing: Callable[[Facts], str] = lambda facts: "",
) -> Family:
    return Family(name, words, _space(amounts), _attacker(name), missing)


NOISE = _family(
    "noise",
    "Gaussian noise on every weight (amount: relative to each parameter's root mean square), then full fine-tuning",
    lambda facts: (0.03, 0.1, 0.3, 1.0),
)
REINIT = _family(
    "reinit",
    "the top blocks drawn anew (amount: how many), then full fine-tuning",
    lambda facts: tuple(float(count) for count in range(1, facts.num_depths)),
    lambda facts: (
        "" if facts.num_depths > 1 and facts.can_redraw else "fresh weights of a trunk of more than one block"
    ),
)
PRUNE = _family(
    "prune",
    "weights of least magnitude set to zero (amount: their share of each matrix), then full fine-tuning",
    lambda facts: (0.1, 0.3, 0.5, 0.7),
)
INTERPOLATE = _family(
    "interpolate",
    "a step towards the public base encoder (amount: share of the way), then full fine-tuning",
    lambda facts: (0.1, 0.25, 0.5, 0.75),
    lambda facts: "" if facts.has_public else "the public encoder that it was made from",
)
BENIGN_FIRST = _family(
    "benign_first",
    "fine-tuning on the desired task (amount: steps of Adam), then on the harmful one",
    lambda facts: (50.0, 200.0, 600.0),
)
MASKED_LM = _family(
    "masked_lm",
    "continued masked-LM pretraining on the attacker's texts (amount: steps of Adam), then full fine-tuning",
    lambda facts: (50.0, 200.0, 600.0),
    lambda facts: "" if facts.has_masked_lm else "the public encoder's masked-LM head",
)
