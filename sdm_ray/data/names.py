"""Positions of a person's name in texts: the value of their group, or capitalised words inside a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
NOWHERE = (-1, -1)

Span = tuple[int, int]
"""Offsets of the first characters of a name's two words, or of its word and the next one; -1 if there is none."""


def spans(texts: Sequence[str], groups: Sequence[str] | None) -> list[Span]:
    """Find a name in each text.

    Args:
        texts: the texts as tokenised.
        groups: name in each text; None if unknown; a name that does not occur in its text is ignored.
    """
    names = [None] * len(texts) if groups is None else groups
    return [_of_name(text, name) or _of_capitals(text) for text, name in zip(texts, names, strict=True)]


def positions(offsets: Sequence[Span], span: Span, text: str) -> Span:
    """Tokens that contain the characters of a span.

    Args:
        offsets: start and end offset of each token in characters; empty for special tokens.
        span: from `spans`.
        text: the tokenised text.

    Returns:
        Two tokens, -1 for none; for a one-word name the second one is the word's second token, if it has one.
    """
    first, second = (_holding(offsets, character) for character in span)
    if first < 0:
        return NOWHERE
    if second < 0 and first + 1 < len(offsets):
        start, stop = offsets[first + 1]
        goes_on = start == offsets[first][1] and start < stop and text[start].isalnum()
        second = first + 1 if goes_on else -1
    return first, second


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


def as_array(found: Sequence[Span]) -> np.ndarray:
    """(N, 2) int32."""
    return np.array(found, dtype=np.int32).reshape(-1, 2)
