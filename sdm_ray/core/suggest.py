"""Hints for names that are not known: the nearest known ones."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, count: int = 1, similarity: float = 0.6) -> list[str]:
    """The known names that are most like `name`, best first; none where nothing is alike.

    Args:
        name: what was asked for.
        known: the existing names.
        count: most names returned.
        similarity: least similarity, from 0 to 1 (the cutoff of `difflib.get_close_matches`).
    """
    import difflib

    return difflib.get_close_matches(name, list(known), n=count, cutoff=similarity)


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """The question "did you mean 'x'?" for the nearest known name, or `otherwise` where nothing is alike."""
    found = nearest(name, known)
    return f"did you mean {found[0]!r}?" if found else otherwise
