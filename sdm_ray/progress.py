"""Long work is a generator of progress; this runs one to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from sdm_ray.types import Progress

T = TypeVar("T")


def run_through(work: Generator[Progress, None, T], on_progress: Callable[[Progress], None]) -> T:
    """Run `work` to its end, show `on_progress` every step on the way, and return what it returns."""
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
        on_progress(progress)
