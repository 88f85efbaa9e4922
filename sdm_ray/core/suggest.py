"""Suggestions for unknown names: the nearest known ones."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, count: int = 1, similarity: float = 0.6) -> list[str]:
    """Known names most similar to `name`, best first; empty if none is similar.

    Args:
        name: the unknown name.
        known: the known names.
        count: most names returned.
        similarity: least similarity, from 0 to 1 (the cutoff of `difflib.get_close_matches`).
    """
    import difflib

    return difflib.get_close_matches(name, list(known), n=count, cutoff=similarity)


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """The question "did you mean 'x'?" for the nearest known name, or `otherwise` if none is similar."""
    found = nearest(name, known)
    return f"did you mean {found[0]!r}?" if found else otherwise
