"""The family that reads states of single tokens, rescaled by the attacker's own texts.

Pooling drowns one token in fifteen, and a direction that was shrunk is below what an optimiser's first steps amplify.
Whoever scales every direction of the states alike, and knows or learns which token to read, is stopped by neither.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal

from sdm_ray.attack.families.base import Attacker, Facts, Family
from sdm_ray.attack.space import Choice, LogFloat, Point, Space
from sdm_ray.config.attack import AttackSettings

Reading = Literal["query", "maximum", "position", "known", "pair", "bilinear", "interaction", "missing"]
"""How the states of a text become one vector.

`query`: their mean under softmax weights of a learned query. `maximum`: the maximum and the minimum over tokens of each
coordinate. `position`: the state of a token by its place. `known`: that of the token where a name is known to stand.
`pair`: the states of both tokens of a name, side by side. `bilinear`: principal components of names of one token, and
of names of two the products of both tokens' components, fitted to all texts of attacker-train, labelled or not: what
two tokens tell together takes few labels then. `interaction`: what a hidden state tells of both tokens beyond what each
adds by itself, when names are put into texts of attacker-train (`engine.interaction`); names of one token as `bilinear`
has them. `missing`: what weights that read the stream make of directions that are missing from it; there are many such
readings, and attacker-validation chooses among them (`engine.missing_readers`).
"""
OF_NAMES: tuple[Reading, ...] = ("bilinear", "interaction")
"""Readings that make one vector of a name, in sizes that matter, so that ridge regression reads them out."""
MISSING: Reading = "missing"
READS_NAMES: tuple[Reading, ...] = ("known", "pair", *OF_NAMES, MISSING)
"""Readings that need to know where names stand."""
Scaling = Literal["standardised", "whitened"]
"""`standardised` scales each coordinate, `whitened` each principal axis, to deviation 1 over the attacker's tokens."""
Readout = Literal["logistic", "ridge", "perceptron", "kernel"]

NAME = "token_probe"
ROWS = -2
"""The layer of the token embedding's rows themselves, before positions and norms."""
POOLED = -1
"""The layer of the pooled features, one vector a text."""
READINGS: tuple[tuple[Reading, int], ...] = (
    ("position", 1), ("query", 0), ("maximum", 0), ("position", 2), ("position", 3),
)  # fmt: skip
"""Readings with the place of their token, 0 being the special token that most texts begin with."""
NAME_READINGS: tuple[tuple[Reading, int], ...] = (
    ("bilinear", 3), ("known", 0), ("query", 0), ("bilinear", 16), ("pair", 0), ("maximum", 0), ("bilinear", 4),
    ("interaction", 0),
)  # fmt: skip
"""Readings where it is known at which tokens names stand: fixed places tell no more. `bilinear` with its number of
components, `interaction` with the hidden state that is read, 0 for that of the layer, or for all of them side by side
where that is of single tokens."""
SCALINGS: tuple[Scaling, ...] = ("standardised", "whitened")
READOUTS: tuple[Readout, ...] = ("logistic", "kernel", "ridge", "perceptron")
PENALTY = LogFloat(1e-3, 10.0)
MISSING_PENALTIES = (1.0, 5.0)
"""Of what is made of missing directions, times those of `engine.missing_readers`."""
BILINEAR_PENALTY = 0.03
"""A bilinear reader's penalty is this share of the searched one: a name's products are of length one."""


def layers(facts: Facts) -> tuple[int, ...]:
    """Layers whose token states can be read: the embeddings first, then the last layer downwards, then the rows."""
    last = facts.num_hidden_states - 1
    hidden = (0, *range(last, 0, -1)) if last >= 0 else ()
    return (*hidden, ROWS) if hidden and facts.has_token_rows else hidden


def readings(facts: Facts) -> tuple[tuple[Reading, int], ...]:
    """Readings that the data allow."""
    return NAME_READINGS if facts.knows_positions else READINGS


def reading_words(attacker: Attacker) -> str:
    """What an attacker's reading reads, in a phrase."""
    words = {"query": "a learned query's mean", "maximum": "the extremes over tokens", "known": "the token of the name"}
    words |= {"bilinear": f"products of {attacker.position} components of a name's tokens"}
    words |= {"interaction": f"what a name's tokens tell together in {_together_words(attacker)}"}
    words |= {"missing": "what weights make of directions that are missing from the stream"}
    words |= {"pair": "the two tokens of the name", "position": f"token {attacker.position}"}
    return words[attacker.reading]


def _together_words(attacker: Attacker) -> str:
    layer = attacker.position or attacker.layer
    return f"{site_words(layer) if layer > 0 else 'all hidden states'}, and alone"


def site_words(layer: int) -> str:
    """A layer, in a phrase."""
    words = {POOLED: "pooled features", ROWS: "rows of the token embedding", 0: "hidden state 0 (the embeddings)"}
    return words.get(layer, f"hidden state {layer}")


def _space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return {
        "layer": Choice(layers(facts) or (ROWS,)),
        "reading": Choice(tuple(f"{reading} {position}" for reading, position in readings(facts))),
        "scaling": Choice(SCALINGS),
        "readout": Choice(READOUTS),
        "amount": PENALTY,
    }


def _design(settings: AttackSettings, num_examples: int, facts: Facts) -> list[Point]:
    """Pairs of reading and layer, every reading before any comes again; all pairs, then, with other ways to read them.

    A few points drawn at random in so mixed a space would leave readings out that are all it takes.
    """
    space = _space(settings, num_examples, facts)
    choices = {name: value.values for name, value in space.items() if isinstance(value, Choice)}
    ways = list(product(choices["scaling"], choices["readout"]))
    points: list[Point] = []
    if facts.misses_directions:
        points += [{"reading": f"{MISSING} 0", "layer": 0, "amount": amount} for amount in MISSING_PENALTIES]
    for turn, start in product(range(len(ways)), range(len(choices["layer"]))):
        for index, reading in enumerate(choices["reading"]):
            # Interactions begin with all layers side by side, then the last one.
            place = start + (0 if reading.startswith("interaction") else index)
            layer = choices["layer"][place % len(choices["layer"])]
            # Ways take turns along readings, layers and rounds, so that no reading meets one way alone.
            scaling, readout = ways[(3 * index + 5 * start + turn) % len(ways)]
            points.append({"layer": layer, "reading": reading, "scaling": scaling, "readout": readout})
    return points


def _attacker(point: Point, num_examples: int) -> Attacker:
    reading, position = point["reading"].split()
    attacker = Attacker(
        family=NAME,
        num_examples=num_examples,
        trains="probe",
        probe=NAME,
        layer=point["layer"],
        reading=reading,
        position=int(position),
        scaling="standardised" if reading in (*OF_NAMES, MISSING) else point["scaling"],
        readout="ridge" if reading in (*OF_NAMES, MISSING) else point["readout"],
        amount=float(point["amount"]),
    )
    if reading == "bilinear":
        return replace(attacker, amount=attacker.amount * BILINEAR_PENALTY)
    if reading == "interaction":
        # Small penalties do not pay. A hidden state is read for names of two; the embeddings tell more of one token.
        layer = max(attacker.layer, 0)
        return replace(attacker, amount=attacker.amount**0.5, position=layer, layer=min(attacker.layer, 0))
    return attacker


def _missing(facts: Facts) -> str:
    return "" if facts.num_hidden_states else "states of single tokens, which a transformers encoder of texts has"


TOKEN_PROBE = Family(
    NAME, "readers of single tokens' states at every layer, rescaled (amount: penalty)", _space, _attacker, _missing,
    _design,
)  # fmt: skip
