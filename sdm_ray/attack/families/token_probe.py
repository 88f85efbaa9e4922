"""The family of probes on states of single tokens, scaled with statistics of the attacker's own texts.

Pooling dilutes information that is in one token of fifteen, and fine-tuning does not amplify a shrunk direction within
few steps. A probe that scales all directions equally, and knows or learns which token to read, avoids both.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal

from sdm_ray.attack.families.base import Attacker, Facts, Family
from sdm_ray.attack.space import Choice, LogFloat, Point, Space
from sdm_ray.config.attack import AttackSettings

Reading = Literal["query", "maximum", "position", "known", "pair", "bilinear", "interaction", "missing"]
"""How one vector is computed from the token states of a text.

- `query`: the mean of the states under softmax weights of a learned query.
- `maximum`: the maximum and the minimum over tokens of each coordinate.
- `position`: the state of the token at a fixed position.
- `known`: the state of the first token of the name, whose position is known (of one word: of its last token).
- `pair`: the states of both tokens of the name, concatenated.
- `bilinear`: for a one-token name its principal components, for a two-token name the products of both tokens'
  components. They are fitted to all texts of attacker-train, with or without labels, so that a function of both tokens
  can be learned from few labels.
- `interaction`: for a two-token name, the part of a hidden state that is not a sum of contributions of either token,
  measured by inserting names into texts of attacker-train (`engine.interaction`); for a one-token name as `bilinear`.
- `missing`: what weights that read the residual stream make of directions that are missing from it. There are many such
  readings; attacker-validation selects among them (`engine.missing_readers`).
"""
OF_NAMES: tuple[Reading, ...] = ("bilinear", "interaction")
"""Readings that compute one vector per name. Its scale is meaningful, so the readout is ridge regression without
standardisation."""
MISSING: Reading = "missing"
READS_NAMES: tuple[Reading, ...] = ("known", "pair", *OF_NAMES, MISSING)
"""Readings that need the positions of names."""
Scaling = Literal["standardised", "whitened"]
"""`standardised` scales each coordinate, `whitened` each principal axis, to standard deviation 1 over the attacker's
tokens."""
Readout = Literal["logistic", "ridge", "perceptron", "kernel"]

NAME = "token_probe"
VERSION = 4
"""Part of the key of cached reports. Raise it when the results of this family change."""
ROWS = -2
"""Layer index of the token embedding's raw rows, before position embeddings and norms."""
POOLED = -1
"""Layer index of the pooled features, one vector per text."""
READINGS: tuple[tuple[Reading, int], ...] = (
    ("position", 1), ("query", 0), ("maximum", 0), ("position", 2), ("position", 3),
)  # fmt: skip
"""Readings and token positions if the positions of names are unknown; position 0 is usually a special token."""
NAME_READINGS: tuple[tuple[Reading, int], ...] = (
    ("bilinear", 3), ("known", 0), ("query", 0), ("bilinear", 16), ("pair", 0), ("maximum", 0), ("bilinear", 4),
    ("interaction", 0),
)  # fmt: skip
"""Readings, each with a number, if the positions of names are known; fixed positions add nothing then. The number is
the number of components for `bilinear`, and 0 for `interaction` (see `_attacker`)."""
SCALINGS: tuple[Scaling, ...] = ("standardised", "whitened")
READOUTS: tuple[Readout, ...] = ("logistic", "kernel", "ridge", "perceptron")
PENALTY = LogFloat(1e-3, 10.0)
MISSING_PENALTIES = (1.0, 5.0)
"""Of what is made of missing directions, times those of `engine.missing_readers`."""
BILINEAR_PENALTY = 0.03
"""Factor on the searched penalty for `bilinear`, whose vectors have length 1."""


def layers(facts: Facts) -> tuple[int, ...]:
    """Layers that can be read, in order: hidden state 0, then from the last layer downwards, then the raw rows."""
    last = facts.num_hidden_states - 1
    hidden = (0, *range(last, 0, -1)) if last >= 0 else ()
    return (*hidden, ROWS) if hidden and facts.has_token_rows else hidden


def readings(facts: Facts) -> tuple[tuple[Reading, int], ...]:
    """Readings that are possible with the data."""
    return NAME_READINGS if facts.knows_positions else READINGS


def reading_words(attacker: Attacker) -> str:
    """Description of an attacker's reading, as a phrase."""
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
    """Description of a layer, as a phrase."""
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
    """A systematic list of points: every reading once, then every reading at another layer, until all pairs of reading
    and layer have occurred; then all pairs again with other scalings and readouts.

    A few random points in this discrete space would miss readings, one of which may be the only one that works.
    """
    space = _space(settings, num_examples, facts)
    choices = {name: value.values for name, value in space.items() if isinstance(value, Choice)}
    ways = list(product(choices["scaling"], choices["readout"]))
    points: list[Point] = []
    if facts.misses_directions:
        points += [{"reading": f"{MISSING} 0", "layer": 0, "amount": amount} for amount in MISSING_PENALTIES]
    for turn, start in product(range(len(ways)), range(len(choices["layer"]))):
        for index, reading in enumerate(choices["reading"]):
            # The first interaction uses all layers (hidden state 0 stands for them), the next one the last layer.
            place = start + (0 if reading.startswith("interaction") else index)
            layer = choices["layer"][place % len(choices["layer"])]
            # Alternate scaling and readout over readings, layers and rounds, so that no reading has always the same.
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
        # Small penalties do not help. A two-token name is read from hidden state `position` (0: from all of them), a
        # one-token name from the embeddings, which are more informative for it.
        layer = max(attacker.layer, 0)
        return replace(attacker, amount=attacker.amount**0.5, position=layer, layer=min(attacker.layer, 0))
    return attacker


def _missing(facts: Facts) -> str:
    return "" if facts.num_hidden_states else "states of single tokens, which a transformers encoder of texts has"


TOKEN_PROBE = Family(
    NAME, "readers of single tokens' states at every layer, rescaled (amount: penalty)", _space, _attacker, _missing,
    _design,
)  # fmt: skip
