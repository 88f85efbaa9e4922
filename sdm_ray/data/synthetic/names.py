"""People and places of a version 2 world: one-word names, two-word names, place names.

The code calls a word of a two-word name a piece, and a two-word name a pair.
"""

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
    """A person that texts are about."""

    pieces: tuple[str, ...]
    """One or two words, lower case."""
    gender: str
    """Gender; for a two-word name the exclusive or of one hidden bit of each word (`Pieces.gender`)."""
    origin: str
    """Origin; for a two-word name that of its first word."""

    @property
    def name(self) -> str:
        """The words joined by a space; the group by which data are split."""
        return " ".join(self.pieces)


class Pieces(NamedTuple):
    """The words of which two-word names consist."""

    first: dict[str, tuple[int, ...]]
    """`NUM_BITS` hidden bits by first word."""
    second: dict[str, tuple[int, int]]
    """By second word: the index of the first word's bit that it selects, and a hidden bit of its own."""

    def gender(self, first: str, second: str) -> str:
        """The exclusive or of the first word's selected bit and the second word's own bit."""
        asked, own = self.second[second]
        return GENDERS[self.first[first][asked] ^ own]


def people(world: SyntheticWorld) -> list[Person]:
    """`world.num_names` people with one-word names, half of each gender, then `world.num_pairs` with two-word names."""
    return [*_singles(world), *_pairs(world)]


def pieces(world: SyntheticWorld) -> Pieces:
    """All words of two-word names. Each bit is 0 as often as 1; none of the words is a one-word name."""
    stream = Stream(world, "pieces")
    drawn = _invented(stream, 2 * NUM_PIECES, taken={person.name for person in _singles(world)})
    bits = [stream.shuffled([index % 2 for index in range(NUM_PIECES)]) for _ in range(NUM_BITS)]
    asked = [(index % NUM_BITS, index // NUM_BITS % 2) for index in range(NUM_PIECES)]
    return Pieces(
        dict(zip(drawn[:NUM_PIECES], zip(*bits, strict=True), strict=True)),
        dict(zip(drawn[NUM_PIECES:], asked, strict=True)),
    )


def places(world: SyntheticWorld) -> dict[str, str]:
    """Region by place name, lower case; a quarter of the places in each region."""
    stream = Stream(world, "places")
    taken: dict[str, None] = {}
    while len(taken) < NUM_PLACES:
        taken.setdefault(stream.choice(ONSETS) + stream.choice(VOWELS) + "r" + stream.choice(PLACE_ENDINGS))
    regions = tuple(REGIONS)
    return {place: regions[index % len(regions)] for index, place in enumerate(taken)}


def plain_words() -> frozenset[str]:
    """All words except names and places. Names and places are generated so as to differ from these words."""
    words = set(FILLER) | {word for gendered in (*GENDERED.values(), NEUTRAL) for word in gendered.words()}
    words |= {word for craft in CRAFTS for word in (*craft.jargon, *craft.indicators)}
    for classes in (ORIGINS, REGIONS, KINDS, PASTIMES):
        words |= {word for members in classes.values() for word in members}
    return frozenset(words)


def indicator_words() -> frozenset[str]:
    """All words that reveal an origin, a region, a pastime's kind or a trade; they occur in pretraining texts only."""
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
    """`count` distinct words of two or three syllables, neither in `taken` nor in `plain_words`."""
    used = taken | plain_words()
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        syllables = [stream.choice(ONSETS) + stream.choice(VOWELS) for _ in range(2 + stream.chance(0.5))]
        word = "".join(syllables) + stream.choice(CODAS)
        if word not in used:
            drawn.setdefault(word)
    return list(drawn)
