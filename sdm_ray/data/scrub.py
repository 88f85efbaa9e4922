"""Pronoun scrubbing, as the paper does it (arXiv 2211.14946): gendered pronouns become they, their, them."""

from __future__ import annotations

import re

_NEUTRAL = {"she": "they", "he": "they", "her": "their", "his": "their", "him": "them"}
_PRONOUN = re.compile(r"\b(" + "|".join(_NEUTRAL) + r")\b", re.IGNORECASE)


def scrub_pronouns(text: str) -> str:
    """Replace she and he by they, her and his by their, him by them, keeping lower case, Title case and CAPITALS.

    Only these whole words are replaced. Names, titles (Mr, Ms), reflexives (herself) and "hers" still reveal the
    gender. "Her" is always treated as a possessive ("saw her" becomes "saw their").
    """
    return _PRONOUN.sub(_replace, text)


def _replace(match: re.Match[str]) -> str:
    word = match.group()
    neutral = _NEUTRAL[word.lower()]
    if word.isupper():
        return neutral.upper()
    return neutral.capitalize() if word[0].isupper() else neutral
