"""Remove words that reveal the secret: gendered pronouns, as in the paper (arXiv 2211.14946), and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from sdm_ray.data.names import WORD, Capitals

_NEUTRAL = {"she": "they", "he": "they", "her": "their", "his": "their", "him": "them"}
_PRONOUN = re.compile(r"\b(" + "|".join(_NEUTRAL) + r")\b", re.IGNORECASE)


def scrub_pronouns(text: str) -> str:
    """Replace she and he by they, her and his by their, him by them, keeping lower case, Title case and CAPITALS.

    Only these whole words are replaced. Names, titles (Mr, Ms), reflexives (herself) and "hers" still reveal the
    gender. "Her" is always treated as a possessive ("saw her" becomes "saw their").
    """
    return _PRONOUN.sub(_replace, text)


def scrub_names(text: str, capitals: Capitals | None = None) -> str:
    """Remove every capitalised word that does not begin a sentence, except "I", and scrub pronouns.

    Place names are removed too.

    Args:
        text: a text.
        capitals: which words look like names; they are removed at the beginning of a sentence too. With None, a name
            that begins a sentence stays.
    """
    since = 0

    def begins(place: int) -> bool:
        between = text[since:place]
        return not since or bool(re.search(r"[.!?:\n]", between))

    kept = []
    for word in WORD.finditer(text):
        named = capitals is not None and capitals.are_in(word[0])
        if named or (word[0][0].isupper() and word[0] != "I" and not begins(word.start())):
            kept.append((word.start(), word.end()))
        since = word.end()
    return scrub_pronouns(_without(text, kept))


def word_scrubber(words: Collection[str]) -> Callable[[str], str]:
    """Build a function that removes some words (lower case) from a text, ignoring case."""
    return lambda text: _without(text, [word.span() for word in WORD.finditer(text) if word[0].lower() in words])


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """Remove some words from a text, leaving one space in place of each."""
    ends = [0, *(stop for _, stop in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    left = "".join(text[start:stop] for start, stop in zip(ends, starts, strict=True))
    return re.sub(r"\s+([.,;!?])", r"\1", re.sub(r"\s+", " ", left)).strip() if spans else text


def _replace(match: re.Match[str]) -> str:
    word = match.group()
    neutral = _NEUTRAL[word.lower()]
    if word.isupper():
        return neutral.upper()
    return neutral.capitalize() if word[0].isupper() else neutral
