"""Who lives in a world of version 2, and where: single names, names of two pieces, places."""

from __future__ import annotations

from typing import NamedTuple

from sdm_ray.config.data import SyntheticWorld
from sdm_ray.data.lexicon import CODAS, GENDERED, GENDERS, NEUTRAL, ONSETS, VOWELS
from sdm_ray.data.synthetic.jargon import CRAFTS
from sdm_ray.data.synthetic.phrases import (
    FILLER,
    KINDS,
    NUM_BITS,
    NUM_PIECES,
    NUM_PLACES,
    ORIGINS,
    PASTIMES,
    PLACE_ENDINGS,
    REGIONS,
)
from sdm_ray.data.synthetic.stream import Stream


class Person(NamedTuple):
    """Someone whom texts are about."""

    pieces: tuple[str, ...]
    """One or two words, lower case."""
    gender: str
    """Of a pair: the exclusive or of a hidden bit of each piece (`Pieces.gender`)."""
    origin: str
    """Of a pair: that of its first piece."""

    @property
    def name(self) -> str:
        """The pieces with a space between; what splits are made by."""
        return " ".join(self.pieces)


class Pieces(NamedTuple):
    """The words that names of two pieces are made of."""

    first: dict[str, tuple[int, ...]]
    """Hidden bits, `NUM_BITS` a piece."""
    second: dict[str, tuple[int, int]]
    """Which bit of the first piece is meant, and a hidden bit of its own."""

    def gender(self, first: str, second: str) -> str:
        """The exclusive or of the bit of the first piece that is meant and that of the second."""
        asked, own = self.second[second]
        return GENDERS[self.first[first][asked] ^ own]


def people(world: SyntheticWorld) -> list[Person]:
    """`world.num_names` people of one piece, half of each gender, then `world.num_pairs` of two."""
    return [*_singles(world), *_pairs(world)]


def pieces(world: SyntheticWorld) -> Pieces:
    """All pieces, each bit as often 0 as 1; no piece is a single name."""
    stream = Stream(world, "pieces")
    drawn = _invented(stream, 2 * NUM_PIECES, taken={person.name for person in _singles(world)})
    bits = [stream.shuffled([index % 2 for index in range(NUM_PIECES)]) for _ in range(NUM_BITS)]
    asked = [(index % NUM_BITS, index // NUM_BITS % 2) for index in range(NUM_PIECES)]
    return Pieces(
        dict(zip(drawn[:NUM_PIECES], zip(*bits, strict=True), strict=True)),
        dict(zip(drawn[NUM_PIECES:], asked, strict=True)),
    )


def places(world: SyntheticWorld) -> dict[str, str]:
    """Region by place, lower case; a quarter of them in each region."""
    stream = Stream(world, "places")
    taken: dict[str, None] = {}
    while len(taken) < NUM_PLACES:
        taken.setdefault(stream.choice(ONSETS) + stream.choice(VOWELS) + "r" + stream.choice(PLACE_ENDINGS))
    regions = tuple(REGIONS)
    return {place: regions[index % len(regions)] for index, place in enumerate(taken)}


def plain_words() -> frozenset[str]:
    """Every word but names and places, which are invented so as to differ from them."""
    words = set(FILLER) | {word for gendered in (*GENDERED.values(), NEUTRAL) for word in gendered.words()}
    words |= {word for craft in CRAFTS for word in (*craft.jargon, *craft.indicators)}
    for classes in (ORIGINS, REGIONS, KINDS, PASTIMES):
        words |= {word for members in classes.values() for word in members}
    return frozenset(words)


def indicator_words() -> frozenset[str]:
    """The words that tell origin, region, kind or trade; in pretraining texts only."""
    told = {word for classes in (ORIGINS, REGIONS, KINDS) for members in classes.values() for word in members}
    return frozenset(told | {word for craft in CRAFTS for word in craft.indicators})


def _singles(world: SyntheticWorld) -> list[Person]:
    stream = Stream(world, "names")
    drawn = _invented(stream, world.num_names, taken=set(places(world)))
    genders = stream.shuffled([GENDERS[index % 2] for index in range(len(drawn))])
    origins = tuple(ORIGINS)
    from_where = stream.shuffled([origins[index % len(origins)] for index in range(len(drawn))])
    return [Person((name,), gender, origin) for name, gender, origin in zip(drawn, genders, from_where, strict=True)]


def _pairs(world: SyntheticWorld) -> list[Person]:
    parts = pieces(world)
    stream = Stream(world, "pairs")
    origins = tuple(ORIGINS)
    drawn = stream.shuffled([origins[index // 2 % len(origins)] for index in range(NUM_PIECES)])
    origin = dict(zip(parts.first, drawn, strict=True))
    every = stream.shuffled([(one, other) for one in parts.first for other in parts.second])
    return [Person((one, other), parts.gender(one, other), origin[one]) for one, other in every[: world.num_pairs]]


def _invented(stream: Stream, count: int, taken: set[str]) -> list[str]:
    """Different words of two or three syllables that are neither taken nor in use."""
    used = taken | plain_words()
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        syllables = [stream.choice(ONSETS) + stream.choice(VOWELS) for _ in range(2 + stream.chance(0.5))]
        word = "".join(syllables) + stream.choice(CODAS)
        if word not in used:
            drawn.setdefault(word)
    return list(drawn)
