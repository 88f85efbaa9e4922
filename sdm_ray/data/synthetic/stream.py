"""Random draws for a synthetic world, the same on every platform and Python version."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from sdm_ray.config.data import SyntheticWorld

T = TypeVar("T")


class Stream:
    """A named stream of random draws for a world; it uses only `random.Random.random`."""

    def __init__(self, world: SyntheticWorld, purpose: str) -> None:
        seed = hashlib.sha256(f"sdm-ray {world.version} {world.seed} {purpose}".encode()).digest()
        self.random = random.Random(int.from_bytes(seed[:16], "big")).random

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One item, with a probability proportional to its weight."""
        left = self.random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def shuffle(self, items: list[T]) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = int(self.random() * (last + 1))
            items[last], items[other] = items[other], items[last]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A shuffled copy."""
        copy = list(items)
        self.shuffle(copy)
        return copy

    def rounds(self, items: Sequence[T]) -> Iterator[T]:
        """An endless iterator: every round holds each item once, in a new random order."""
        while items:
            yield from self.shuffled(items)
