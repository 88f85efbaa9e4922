"""Check that the splits are large enough for an attack, and suggest sizes that fit; nothing needs to be loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

ROUND = (10, 20, 50, 100, 200, 500, 1000)
"""Numbers of examples to suggest."""
LEAST_META_TRAIN = 0.2
"""Smallest fraction of meta-training in a suggested split."""
MARGIN = 1.1
"""Safety factor of suggested fractions: a split by hashes gives only approximate sizes."""


def largest_size(counts: Sequence[int], *, balanced: bool) -> int:
    """Largest number of labelled examples that can be drawn from a pool.

    Args:
        counts: number of examples of each class in the pool.
        balanced: whether the same number is drawn from each class.
    """
    return len(counts) * min(counts) if balanced else sum(counts)


def fitting_sizes(sizes: Sequence[int], counts: Sequence[int], *, balanced: bool) -> list[int]:
    """The sizes that fit, with round numbers in place of the others; empty if none fits."""
    most, least = largest_size(counts, balanced=balanced), max(4, len(counts))
    kept = [n for n in sizes if least <= n <= most]
    missing = len(sizes) - len(kept)
    others = [n for n in ROUND if least <= n <= most and n not in kept]
    return sorted(kept + others[-missing:]) if missing else sorted(kept)


def size_problem(
    sizes: Sequence[int], counts: Sequence[int], names: Sequence[str], *, balanced: bool, of: Mapping[str, int]
) -> str | None:
    """An error message for numbers of labelled examples that do not fit, with a remedy; None if all fit.

    Args:
        sizes: numbers of labelled examples, ascending, with `all` resolved.
        counts: number of examples of each class in attacker-train.
        names: names of the classes.
        balanced: whether the same number is drawn from each class.
        of: number of examples of each of the four splits, by name.
    """
    total = sum(counts)
    problems = [problem for n in sizes if (problem := _problem(n, total, counts, names, balanced=balanced)) is not None]
    if not problems:
        return None
    fitting = fitting_sizes(sizes, counts, balanced=balanced)
    remedy = f"set attack.num_examples to {fitting}" if fitting else "use more data"
    shares = _shares(max(sizes), counts, of, balanced=balanced)
    if shares is not None:
        remedy += f", or data.splits to {{{', '.join(f'{name}: {share:.2f}' for name, share in shares.items())}}}"
    return f"attack.num_examples: {'; '.join(problems)}; {remedy}"


def _problem(n: int, total: int, counts: Sequence[int], names: Sequence[str], *, balanced: bool) -> str | None:
    if n < len(names):
        return f"n = {n} is below the number of classes ({len(names)})"
    if n > total:
        return f"n = {n}, but split 'attacker_train' has {total} examples"
    needed = -(-n // len(names))
    scarce = min(range(len(names)), key=counts.__getitem__)
    if balanced and n < total and counts[scarce] < needed:
        return (
            f"n = {n} needs {needed} examples of each class, but split 'attacker_train' has {counts[scarce]} of "
            f"'{names[scarce]}' (attack.class_balanced: false draws them as they come)"
        )
    return None


def _shares(n: int, counts: Sequence[int], of: Mapping[str, int], *, balanced: bool) -> dict[str, float] | None:
    """Fractions of the splits with which n examples would fit; None if meta-training would be too small."""
    everything, most = sum(of.values()), largest_size(counts, balanced=balanced)
    if not everything or not most or n <= most:
        return None
    shares = {name: round(count / everything, 2) for name, count in of.items()}
    shares["attacker_train"] = math.ceil(MARGIN * n / most * of["attacker_train"] / everything * 100) / 100
    shares["meta_train"] = round(1 - sum(share for name, share in shares.items() if name != "meta_train"), 2)
    return shares if shares["meta_train"] >= LEAST_META_TRAIN else None
