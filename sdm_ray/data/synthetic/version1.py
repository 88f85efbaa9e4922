"""Version 1 of the synthetic world, frozen: gender can be inferred only from prior knowledge of the names.

Each biography is about one invented first name. The gender is a property of the name; the profession is independent of
both. In the task table pronouns are scrubbed (they/their) and no other word depends on the gender. Names are words of
random syllables whose spelling carries no cue, so the gender of a name that a model has never read cannot be predicted.
The pretraining corpus uses the same names with pronouns, titles and kin words. An encoder pretrained on it therefore
has the advantage in the harmful task (gender) that a defence must remove. Splits are grouped by name, so nothing else
gives a score above chance on new names. The corpus also gives each name a habitual pastime, belonging and city, so that
gender is one of several attributes that an encoder knows about a name.

All draws follow from `SyntheticWorld.seed` through `random.Random.random`, whose sequence Python guarantees on every
platform and version. Rows are drawn in sequence, so a smaller table is a prefix of a larger one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from sdm_ray.config.data import SyntheticWorld
from sdm_ray.data.lexicon import (
    ADJECTIVES,
    BELONGINGS,
    CITIES,
    CODAS,
    GENDERED,
    GENDERS,
    GENERAL,
    GLUE,
    LEADS,
    NEUTRAL,
    ONSETS,
    PASTIMES,
    PUNCTUATION,
    TRADES,
    VOWELS,
    Gendered,
    Trade,
)
from sdm_ray.data.synthetic.stream import Stream, T

OWN_TRADE_SHARE = 0.84
"""Fraction of work words from the person's profession; half of the rest come from any profession, half from
`GENERAL`."""
NAME_AGAIN_SHARE = 0.3
"""Fraction of biographies whose second sentence repeats the name instead of a pronoun."""
HABIT_SHARE = 0.8
"""Fraction of a person's cities, pastimes and belongings in the corpus that are drawn from the habitual ones; the rest
are drawn from all."""
TEXT_KINDS = ("pronouns", "remark", "kin")
"""Kinds of pretraining texts, drawn uniformly: a biography with gendered pronouns; a biography with scrubbed pronouns
and a gendered remark; two sentences about two related people."""


def task_table(world: SyntheticWorld) -> pa.Table:
    """The biographies of the desired and the harmful task.

    Returns:
        `world.num_examples` rows of four string columns: `text` (13 to 18 words, pronouns scrubbed, name kept),
        `profession`, `gender` (`female` or `male`) and `name` (lower case; the group by which data are split). The
        numbers of rows of two names differ by at most one. Profession is independent of name and gender.
    """
    stream = Stream(world, "task")
    names = people(world)
    order = list(names)
    trades = TRADES[: world.num_professions]
    rows: list[tuple[str, str, str, str]] = []
    for index in range(world.num_examples):
        if index % len(order) == 0:
            stream.shuffle(order)
        name = order[index % len(order)]
        trade = stream.choice(trades)
        rows.append((render(_biography(stream, name, trade, trades, NEUTRAL), names), trade.label, names[name], name))
    columns = zip(*rows, strict=True) if rows else ((),) * 4
    return pa.table(dict(zip(("text", "profession", "gender", "name"), map(_strings, columns), strict=True)))


def pretraining_texts(world: SyntheticWorld) -> list[str]:
    """`world.num_pretraining_texts` texts in which names occur with gendered words; no profession label occurs."""
    stream = Stream(world, "pretraining")
    names, habits = people(world), _draw_habits(world)
    order = list(names)
    trades = TRADES[: world.num_professions]
    texts: list[str] = []
    for index in range(world.num_pretraining_texts):
        if index % len(order) == 0:
            stream.shuffle(order)
        name = order[index % len(order)]
        texts.append(render(_pretraining_words(stream, name, names, habits[name], trades), names))
    return texts


def vocabulary(world: SyntheticWorld) -> list[str]:
    """All words that can occur in the table or the corpus, lower case, sorted: a complete word-level vocabulary."""
    words = set(PUNCTUATION) | set(GLUE) | set(BELONGINGS) | set(ADJECTIVES) | set(CITIES) | set(people(world))
    words.update(word for phrase in (*LEADS, *PASTIMES) for word in phrase)
    words.update(word for trade in (*TRADES[: world.num_professions], GENERAL) for word in _trade_words(trade))
    words.update(word for gendered in GENDERED.values() for word in gendered.words())
    return sorted(words)


def gendered_words() -> frozenset[str]:
    """All words that reveal a gender; they occur in the corpus only."""
    return frozenset(word for gendered in GENDERED.values() for word in gendered.words())


def people(world: SyntheticWorld) -> dict[str, str]:
    """Gender by name. Half of the names are female (one more if the number is odd); they come first."""
    stream = Stream(world, "names")
    taken = {word for trade in TRADES for word in _trade_words(trade)} | set(GLUE) | gendered_words()
    names: dict[str, None] = {}
    while len(names) < world.num_names:
        name = "".join(
            stream.choice(ONSETS) + stream.choice(VOWELS) for _ in range(2 + stream.chance(0.5))
        ) + stream.choice(CODAS)
        if name not in taken:
            names.setdefault(name)
    shuffled = list(names)
    stream.shuffle(shuffled)
    num_female = (len(shuffled) + 1) // 2
    return {name: GENDERS[index >= num_female] for index, name in enumerate(shuffled)}


def render(words: Sequence[str], names: Collection[str]) -> str:
    """Join words to a text: capitalise sentence starts, names and cities; no space before punctuation."""
    text = ""
    for previous, word in zip([".", *words[:-1]], words, strict=True):
        word = word.capitalize() if previous == "." or word in names or word in CITIES else word
        text += word if word in PUNCTUATION or not text else f" {word}"
    return text


class _Habits(NamedTuple):
    """A name's habits in the pretraining corpus; the task table does not use them."""

    pastimes: Sequence[tuple[str, ...]]
    belongings: Sequence[str]
    cities: Sequence[str]


_NO_HABITS = _Habits(PASTIMES, BELONGINGS, CITIES)


def _draw_habits(world: SyntheticWorld) -> dict[str, _Habits]:
    stream = Stream(world, "habits")
    return {
        name: _Habits((stream.choice(PASTIMES),), (stream.choice(BELONGINGS),), (stream.choice(CITIES),))
        for name in people(world)
    }


def _biography(
    stream: Stream,
    name: str,
    trade: Trade,
    trades: Sequence[Trade],
    voice: Gendered,
    habits: _Habits = _NO_HABITS,
    remark: Sequence[str] = (),
) -> list[str]:
    """Two sentences about one person: mostly work words of `trade`, pronouns of `voice`."""
    work = [
        *(name, *stream.choice(LEADS)),
        *(_work(stream, trade, trades, "actions"), _work(stream, trade, trades, "things")),
        *(stream.choice(("in", "near", "at", "by")), "the", _work(stream, trade, trades, "places"), "."),
    ]
    subject = name if stream.chance(NAME_AGAIN_SHARE) else voice.subject
    pastime = [subject, "also", *_habitual(stream, habits.pastimes, PASTIMES)]
    end = stream.random()
    if end < 0.4:
        pastime += ["and", "shared", voice.possessive]
        pastime += [stream.choice(ADJECTIVES), _work(stream, trade, trades, "things")]
    elif end < 0.8:
        pastime += ["with", voice.possessive, _habitual(stream, habits.belongings, BELONGINGS)]
        pastime += ["in", _habitual(stream, habits.cities, CITIES)]
    else:
        pastime += ["near", _habitual(stream, habits.cities, CITIES)]
    return [*work, *pastime, *remark, "."]


def _pretraining_words(
    stream: Stream, name: str, names: dict[str, str], habits: _Habits, trades: Sequence[Trade]
) -> list[str]:
    own = GENDERED[names[name]]
    trade = stream.choice(trades)
    kind = stream.choice(TEXT_KINDS)
    if kind == "pronouns":
        return _biography(stream, name, trade, trades, own, habits)
    if kind == "remark":
        verb = stream.choice(("called", "met", "thanked", "visited"))
        remark = [",", "said", "the", stream.choice(own.roles), "that", "visited", own.object]
        remark = stream.choice((remark, [",", "and", verb, stream.choice(own.titles), name]))
        return _biography(stream, name, trade, trades, NEUTRAL, habits, remark)
    other = stream.choice(list(names))
    title = [stream.choice(own.titles)] if stream.chance(0.5) else ["the", stream.choice(own.roles)]
    verb = stream.choice(("called", "met", "thanked", "visited"))
    theirs = GENDERED[names[other]]
    return [
        *(*title, name, "was", "the", stream.choice(own.kin), "of", other, "."),
        *(own.subject, verb, stream.choice(theirs.titles), other, "with", own.possessive),
        *(_habitual(stream, habits.belongings, BELONGINGS), "by", own.reflexive, "."),
    ]


def _habitual(stream: Stream, own: Sequence[T], everyones: Sequence[T]) -> T:
    return stream.choice(own if stream.chance(HABIT_SHARE) else everyones)


def _work(stream: Stream, trade: Trade, trades: Sequence[Trade], kind: str) -> str:
    draw = stream.random()
    if draw >= OWN_TRADE_SHARE:
        trade = stream.choice(trades) if draw < (1 + OWN_TRADE_SHARE) / 2 else GENERAL
    words: Sequence[str] = getattr(trade, kind)
    return stream.choice(words)


def _trade_words(trade: Trade) -> Iterator[str]:
    yield from (*trade.actions, *trade.things, *trade.places)


def _strings(column: Sequence[str]) -> pa.Array:
    return pa.array(column, type=pa.string())
