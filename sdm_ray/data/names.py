"""Positions of a person's name in texts: the value of their group, or else the first word that looks like a name.

Which words look like names is counted in the texts themselves (`Capitals`): rare words that are capitalised, wherever
they stand, and hardly ever written in lower case. In 12 000 biographies that is the right word in 91 % of the texts
(names of universities and cities are the rest); the first capitalised word within a sentence is in 12 %, because most
biographies begin with the name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
NOWHERE = (-1, -1)

Span = tuple[int, int]
"""Offsets of the first characters of a name's two words, or of its word and the next one; -1 if there is none or only
one word is meant."""


COUNTED_TEXTS = 20_000
"""Most texts in which words are counted."""
FEWEST_TEXTS = 200
"""With fewer texts, counts do not tell a name from another word that begins a sentence."""
LOWER_SHARE = 0.1
"""A name is written in lower case at most this often, relative to its capitalised occurrences."""
TEXT_SHARE = 0.005
"""A name occurs in at most this fraction of the texts; titles and months occur in more."""


class Capitals:
    """Which words look like names, counted in texts.

    Args:
        texts: a corpus of at least `FEWEST_TEXTS` texts; of very many, every k-th one is counted.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        sample = texts[:: -(-len(texts) // COUNTED_TEXTS)]
        self._capitalised, self._lower, self._texts = Counter[str](), Counter[str](), Counter[str]()
        for text in sample:
            words = WORD.findall(text)
            capitalised = [word.lower() for word in words if word[0].isupper()]
            self._capitalised.update(capitalised)
            self._lower.update(word for word in words if not word[0].isupper())
            self._texts.update(set(capitalised))
        self._most = max(1.0, TEXT_SHARE * len(sample))

    def are_in(self, word: str) -> bool:
        """Whether a word of a text looks like a name."""
        if len(word) < 2 or not word[0].isupper() or word.isupper():
            return False
        low = word.lower()
        return self._lower[low] <= LOWER_SHARE * self._capitalised[low] and self._texts[low] <= self._most


def counted(texts: Sequence[str]) -> Capitals | None:
    """The words of a corpus that look like names; None for too few texts."""
    return Capitals(texts) if len(texts) >= FEWEST_TEXTS else None


def spans(texts: Sequence[str], groups: Sequence[str] | None) -> list[Span]:
    """Find a name in each text.

    Without a group, and in at least `FEWEST_TEXTS` texts, it is the first word that looks like a name (`Capitals`). In
    fewer texts, or where no word looks like one, it is the first capitalised word within a sentence, and the next word.

    Args:
        texts: the texts as tokenised.
        groups: name in each text; None if unknown; a name that does not occur in its text is ignored.
    """
    named = [None] * len(texts) if groups is None else list(map(_of_name, texts, groups))
    capitals = counted(texts) if None in named else None
    return [
        found or (capitals and _first_of(capitals, text)) or _of_capitals(text)
        for text, found in zip(texts, named, strict=True)
    ]


def positions(offsets: Sequence[Span], span: Span, text: str) -> Span:
    """Tokens that contain the characters of a span.

    Args:
        offsets: start and end offset of each token in characters; empty for special tokens.
        span: from `spans`.
        text: the tokenised text.

    Returns:
        Two tokens, -1 for none. A one-word name of several tokens has its last token first (what a first name tells is
        in its ending: in real biographies the last token alone predicts the gender with .81 from 200 examples, the
        first one with .72), then its first one.
    """
    first, second = (_holding(offsets, character) for character in span)
    if first < 0:
        return NOWHERE
    last = first
    while second < 0 and last + 1 < len(offsets):
        start, stop = offsets[last + 1]
        if start != offsets[last][1] or start >= stop or not text[start].isalnum():
            break
        last += 1
    return (last, first) if last > first else (first, second)


def _holding(offsets: Sequence[Span], character: int) -> int:
    if character < 0:
        return -1
    return next((index for index, (start, stop) in enumerate(offsets) if start <= character < stop), -1)


def _of_name(text: str, name: str | None) -> Span | None:
    """Span of a name of one or more words, ignoring case; its first two words are used."""
    if name is None or not name.strip():
        return None
    words = name.split()
    pattern = r"\s+".join(f"({re.escape(word)})" for word in words[:2])
    found = re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)
    if found is None:
        return None
    return found.start(1), found.start(2) if len(words) > 1 else -1


def _of_capitals(text: str) -> Span:
    """Span of the first capitalised word that does not begin a sentence, and of the next word."""
    words = list(WORD.finditer(text))
    for index, word in enumerate(words[1:], start=1):
        between = text[words[index - 1].end() : word.start()]
        if word[0][0].isupper() and word[0] != "I" and not re.search(r"[.!?:\n]", between):
            following = words[index + 1].start() if index + 1 < len(words) else -1
            return word.start(), following
    return NOWHERE


def _first_of(capitals: Capitals, text: str) -> Span | None:
    """Span of the first word that looks like a name; None without one."""
    return next(((word.start(), -1) for word in WORD.finditer(text) if capitals.are_in(word[0])), None)


def as_array(found: Sequence[Span]) -> np.ndarray:
    """(N, 2) int32."""
    return np.array(found, dtype=np.int32).reshape(-1, 2)
