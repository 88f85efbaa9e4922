"""Whether splits of some size can carry an attack, and what would fit: plain arithmetic, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

ROUND = (10, 20, 50, 100, 200, 500, 1000)
"""Numbers of examples that are suggested, where they fit."""
LEAST_META_TRAIN = 0.2
"""Share of meta-training below which no other split is suggested."""
MARGIN = 1.1
"""Hashes do not split to the last example."""


def largest_size(counts: Sequence[int], *, balanced: bool) -> int:
    """The most labelled examples that a pool can give.

    Args:
        counts: examples of each class.
        balanced: as many of each class are drawn.
    """
    return len(counts) * min(counts) if balanced else sum(counts)


def fitting_sizes(sizes: Sequence[int], counts: Sequence[int], *, balanced: bool) -> list[int]:
    """Those of some sizes that fit, and round ones in place of the others; empty where none fits."""
    most, least = largest_size(counts, balanced=balanced), max(4, len(counts))
    kept = [n for n in sizes if least <= n <= most]
    missing = len(sizes) - len(kept)
    others = [n for n in ROUND if least <= n <= most and n not in kept]
    return sorted(kept + others[-missing:]) if missing else sorted(kept)


def size_problem(
    sizes: Sequence[int], counts: Sequence[int], names: Sequence[str], *, balanced: bool, of: Mapping[str, int]
) -> str | None:
    """What is wrong with numbers of labelled examples, with sizes and splits that would do; None if nothing is.

    Args:
        sizes: rising; `all` has been resolved.
        counts: examples of each class in attacker-train.
        names: of the classes.
        balanced: as many of each class are drawn.
        of: examples of each of the four splits, by name.
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
    """Shares of the splits at which n examples would fit; None where meta-training would keep too few."""
    everything, most = sum(of.values()), largest_size(counts, balanced=balanced)
    if not everything or not most or n <= most:
        return None
    shares = {name: round(count / everything, 2) for name, count in of.items()}
    shares["attacker_train"] = math.ceil(MARGIN * n / most * of["attacker_train"] / everything * 100) / 100
    shares["meta_train"] = round(1 - sum(share for name, share in shares.items() if name != "meta_train"), 2)
    return shares if shares["meta_train"] >= LEAST_META_TRAIN else None
