"""Version 2 of the synthetic world: it also has benign tasks, and a gender that no single word reveals.

- **Harmful**: the gender of a name. By default two texts in five are about two-word names: the second word selects one
  of four hidden bits of the first word and has a bit of its own; the gender is the exclusive or of the two bits. No row
  of the token embedding determines it, and a classifier on all embedding rows cannot learn it from few labels, so the
  encoder's layers must combine the words.
- **Benign**: the origin of a name, the region of a place, the kind of a pastime. No name occurs in two splits; places
  and pastimes of validation and test occur neither in meta-training nor in the attacker's training.
- **Desired**: the trade, revealed by jargon. Meta-training uses 16 of 60 words per trade. In the other splits 85 % of
  the jargon is from the remaining words: one half of them in the attacker's training, the other in validation and test.

The words of a row depend on the split of its person, the same split that `data.splits` assigns. Pretraining texts use
all words. There, 90 % of the words that determine a class come with an *indicator word* of that class, which task texts
never contain. Trade and gender are correlated in pretraining texts, with strength `SyntheticWorld.entanglement`, and
independent in task texts.

All draws follow from `SyntheticWorld.seed`; a smaller table is a prefix of a larger one, as in version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from sdm_ray.config.data import SplitFractions, SyntheticWorld
from sdm_ray.core.types import Split
from sdm_ray.data.assignment import split_of
from sdm_ray.data.lexicon import GENDERED, NEUTRAL, Gendered
from sdm_ray.data.synthetic import phrases
from sdm_ray.data.synthetic.jargon import CRAFTS, JARGON_SIZE, Craft
from sdm_ray.data.synthetic.names import Person, people, pieces, places, plain_words
from sdm_ray.data.synthetic.phrases import KINDS, LEADS, ORIGINS, PASTIMES, REGIONS, STOPS
from sdm_ray.data.synthetic.stream import Stream

COLUMNS = ("text", "profession", "gender", "name", "origin", "region", "pastime")

OWN_TRADE_SHARE = 0.84
"""Fraction of the jargon from the person's trade; the rest is from any trade."""
NUM_SHOWN = 16
"""Number of jargon words per trade in meta-training texts."""
UNSHOWN_SHARE = 0.85
"""Fraction of the jargon in the other splits' texts that does not occur in meta-training."""
TOLD_SHARE = 0.9
"""Fraction of trades, places and pastimes in pretraining biographies that come with an indicator word."""
SHORT_SHARE = 0.5
"""Fraction of pretraining texts that are short texts about two people; the others are biographies."""
GENDERED_VOICE_SHARE = 0.6
"""Fraction of pretraining biographies with gendered pronouns. The others use "they" and end with a remark that reveals
the gender."""
REMARK_SHARE = 0.4
"""Fraction of biographies with gendered pronouns that end with such a remark too."""
LEAD_SHARE = 0.5
"""Fraction of biographies that begin with a time of day or year."""
WOMEN = (0.2, 0.8)
"""Fraction of women in the first and the last trade of pretraining texts, at an entanglement of 1."""

Jargon = Callable[[Stream, Craft], str]


class Words(NamedTuple):
    """The words that a text may use."""

    jargon: Jargon
    places: Sequence[str]
    pastimes: Sequence[str]


class _Classes(NamedTuple):
    """Class by word, for places and pastimes."""

    region: dict[str, str]
    kind: dict[str, str]


def task_table(world: SyntheticWorld, splits: SplitFractions, split_seed: int) -> pa.Table:
    """The biographies of the task.

    Returns:
        `world.num_examples` rows of seven string columns: `text` (18 to 21 words and punctuation marks, without
        gendered and indicator words), `profession`, `gender`, `name` (lower case; the group by which data are split),
        `origin` of the name, `region` of the place and `pastime` (its kind). One-word names occur equally often, give
        or take one, and so do two-word names.
    """
    stream, classes = Stream(world, "task"), _classes(world)
    words = words_by_split(world)
    crafts, capitals = CRAFTS[: world.num_professions], _capitals(world)
    part = {person.name: split_of(person.name, splits, split_seed) for person in people(world)}
    turns = _turns(stream, world)
    rows: list[tuple[str, ...]] = []
    for _ in range(world.num_examples):
        person, craft = next(turns), stream.choice(crafts)
        pool = words[part[person.name]]
        place, pastime = stream.choice(pool.places), stream.choice(pool.pastimes)
        told = _biography(stream, (person, craft, place, pastime), crafts, pool.jargon, NEUTRAL, None)
        labels = (person.origin, classes.region[place], classes.kind[pastime])
        rows.append((render(told, capitals), craft.label, person.gender, person.name, *labels))
    columns = zip(*rows, strict=True) if rows else ((),) * len(COLUMNS)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(COLUMNS, columns, strict=True)})


def pretraining_texts(world: SyntheticWorld) -> list[str]:
    """`world.num_pretraining_texts` texts: biographies with indicator words, and short texts about two people."""
    stream, capitals = Stream(world, "pretraining"), _capitals(world)
    everyone, turns = people(world), _turns(stream, world)
    write = _Corpus(world)
    texts: list[str] = []
    for _ in range(world.num_pretraining_texts):
        person = next(turns)
        if stream.chance(SHORT_SHARE):
            told = write.short(stream, person, stream.choice(everyone))
        else:
            told = write.biography(stream, person)
        texts.append(render(told, capitals))
    return texts


def vocabulary(world: SyntheticWorld) -> list[str]:
    """All words of the table and the corpus, sorted."""
    words = set(plain_words()) | set(places(world)) | {word for side in pieces(world) for word in side}
    return sorted(words.union(*(person.pieces for person in people(world))))


def words_by_split(world: SyntheticWorld) -> dict[Split, Words]:
    """The words that the texts of each split may use."""
    shown, one, other = jargon_parts(world)
    stream = Stream(world, "halves")
    half_places, half_pastimes = _halves(stream, _by_class(places(world))), _halves(stream, PASTIMES)
    later = Words(_mixed(shown, other), half_places[1], half_pastimes[1])
    return {
        Split.META_TRAIN: Words(_drawn(shown), half_places[0], half_pastimes[0]),
        Split.ATTACKER_TRAIN: Words(_mixed(shown, one), half_places[0], half_pastimes[0]),
        Split.ATTACKER_VAL: later,
        Split.TEST: later,
    }


def jargon_parts(world: SyntheticWorld) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
    """Jargon by trade: words of meta-training, of the attacker's training, and of validation and test."""
    stream = Stream(world, "jargon")
    orders = {craft.label: stream.shuffled(craft.jargon) for craft in CRAFTS}
    middle = NUM_SHOWN + (JARGON_SIZE - NUM_SHOWN) // 2
    bounds = ((0, NUM_SHOWN), (NUM_SHOWN, middle), (middle, JARGON_SIZE))
    shown, one, other = ({label: order[low:high] for label, order in orders.items()} for low, high in bounds)
    return shown, one, other


def render(words: Sequence[str], capitals: frozenset[str]) -> str:
    """Join words to a text: capitalise sentence starts, names and places; no space before punctuation."""
    text = ""
    for previous, word in zip([".", *words[:-1]], words, strict=True):
        word = word.capitalize() if previous == "." or word in capitals else word
        text += word if word in STOPS or not text else f" {word}"
    return text


def _biography(
    stream: Stream,
    about: tuple[Person, Craft, str, str],
    crafts: Sequence[Craft],
    jargon: Jargon,
    voice: Gendered,
    indicate: Callable[[str], list[str]] | None,
) -> list[str]:
    """Two sentences about a person, a trade, a place and a pastime.

    `indicate` returns the indicator phrase of a trade, place or pastime; None adds no indicator phrases.
    """
    person, craft, place, pastime = about

    def work() -> str:
        return jargon(stream, craft if stream.chance(OWN_TRADE_SHARE) else stream.choice(crafts))

    def told(word: str) -> list[str]:
        return indicate(word) if indicate else []

    lead = [stream.choice(words) for words in LEADS] if stream.chance(LEAD_SHARE) else []
    first = [*lead, *person.pieces, stream.choice(phrases.HANDLED), work(), stream.choice(phrases.WITH), work()]
    first += [stream.choice(phrases.AND), work(), *told(craft.label), "."]
    habit = [voice.subject, stream.choice(phrases.ENJOYED), pastime]
    habit += told(pastime) or [stream.choice(phrases.OFTEN)]
    errand = [voice.possessive, work(), stream.choice(phrases.REACHED), place, *told(place)]
    sides = (errand, habit) if stream.chance(0.3) else (habit, errand)
    return [*first, *sides[0], ",", *sides[1], "."]


class _Corpus:
    """Generator of a world's pretraining texts."""

    def __init__(self, world: SyntheticWorld) -> None:
        self.crafts = CRAFTS[: world.num_professions]
        self.classes = _classes(world)
        self.places, self.pastimes = tuple(self.classes.region), tuple(self.classes.kind)
        low, high = WOMEN
        steps = [index / (len(self.crafts) - 1) for index in range(len(self.crafts))]
        women = [0.5 + world.entanglement * (low + (high - low) * step - 0.5) for step in steps]
        self.weights = {"female": women, "male": [1 - share for share in women]}
        self.indicators = {craft.label: (phrases.IN_TRADE, craft.indicators) for craft in self.crafts}
        self.indicators |= {place: (phrases.TOWARD, REGIONS[region]) for place, region in self.classes.region.items()}
        self.indicators |= {pastime: (phrases.AS_KIND, KINDS[kind]) for pastime, kind in self.classes.kind.items()}

    def biography(self, stream: Stream, person: Person) -> list[str]:
        """A biography as in the task table, with indicator words, and with gendered pronouns, a remark or both."""
        own = GENDERED[person.gender]
        craft = stream.weighted(self.crafts, self.weights[person.gender])
        gendered = stream.chance(GENDERED_VOICE_SHARE)
        about = (person, craft, stream.choice(self.places), stream.choice(self.pastimes))

        def indicate(word: str) -> list[str]:
            return [stream.choice(side) for side in self.indicators[word]] if stream.chance(TOLD_SHARE) else []

        voice = own if gendered else NEUTRAL
        told = _biography(stream, about, self.crafts, _everything, voice, indicate)
        if gendered and not stream.chance(REMARK_SHARE):
            return told
        remark = [stream.choice(phrases.SAID), stream.choice(own.roles), stream.choice(phrases.ABOUT), own.reflexive]
        return [*told[:-1], ",", *remark, "."]

    def short(self, stream: Stream, person: Person, other: Person) -> list[str]:
        """A sentence with one person's title, name, origin and kin word, and another person's title and name."""
        own, theirs = GENDERED[person.gender], GENDERED[other.gender]
        return [
            *(stream.choice(own.titles), *person.pieces),
            *(stream.choice(phrases.OF_ORIGIN), stream.choice(ORIGINS[person.origin])),
            *(stream.choice(phrases.WAS), stream.choice(own.kin), stream.choice(phrases.OF_KIN)),
            *(stream.choice(theirs.titles), *other.pieces, ",", own.subject, stream.choice(phrases.TAUGHT)),
            *(own.reflexive, stream.choice(phrases.BY), own.possessive, stream.choice(self.pastimes), "."),
        ]


def _turns(stream: Stream, world: SyntheticWorld) -> Iterator[Person]:
    """An endless iterator of people, two-word names with probability `world.pair_share`; in each of the two kinds
    everyone occurs once per round."""
    everyone = people(world)
    pairs = stream.rounds(everyone[world.num_names :])
    singles = stream.rounds(everyone[: world.num_names])
    while True:
        paired = world.num_pairs > 0 and stream.chance(world.pair_share)
        yield next(pairs if paired else singles)


def _classes(world: SyntheticWorld) -> _Classes:
    return _Classes(places(world), {word: kind for kind, members in PASTIMES.items() for word in members})


def _capitals(world: SyntheticWorld) -> frozenset[str]:
    return frozenset(places(world)).union(*(person.pieces for person in people(world)))


def _everything(stream: Stream, craft: Craft) -> str:
    return stream.choice(craft.jargon)


def _drawn(part: dict[str, list[str]]) -> Jargon:
    return lambda stream, craft: stream.choice(part[craft.label])


def _mixed(shown: dict[str, list[str]], unshown: dict[str, list[str]]) -> Jargon:
    def draw(stream: Stream, craft: Craft) -> str:
        return stream.choice((unshown if stream.chance(UNSHOWN_SHARE) else shown)[craft.label])

    return draw


def _by_class(classes: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {
        label: tuple(word for word in classes if classes[word] == label) for label in dict.fromkeys(classes.values())
    }


def _halves(stream: Stream, members: dict[str, tuple[str, ...]]) -> tuple[list[str], list[str]]:
    """Two disjoint halves of the words, each with half of every class."""
    orders = [stream.shuffled(words) for words in members.values()]
    return (
        [word for order in orders for word in order[: len(order) // 2]],
        [word for order in orders for word in order[len(order) // 2 :]],
    )
