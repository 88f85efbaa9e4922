"""What a training has cost so far, besides time: texts that were read, and FLOPs.

Texts are counted in every step, each as often as it was drawn: outer batches, those of simulated adversaries, general
texts and those of a distillation. Evaluating a batch at several steps does not count it again, and neither validation
nor the trajectories before and after training are counted. FLOPs are counted in `NUM_MEASURED` steps at equal
distances, and taken for the mean of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sdm_ray.core.flops import FlopCounter
from sdm_ray.core.metric_names import Metric

NUM_MEASURED = 8
"""Most steps of a training whose FLOPs are counted."""


class TrainingCost:
    """Counts of one training; they go on after an interruption.

    Args:
        num_steps: outer steps of the training.
        compiled: whether steps are compiled, so that their FLOPs cannot be counted.
    """

    def __init__(self, num_steps: int, *, compiled: bool) -> None:
        count = min(NUM_MEASURED, num_steps)
        self._chosen = (
            frozenset() if compiled else frozenset(num_steps * (2 * i + 1) // (2 * count) for i in range(count))
        )
        self._texts = self._flops = 0.0
        self._counted = self._measured = 0

    @contextmanager
    def measuring(self, step: int) -> Iterator[None]:
        """Count the FLOPs of a step (from 0) if it is one of those whose FLOPs are counted."""
        if step not in self._chosen:
            yield
            return
        with FlopCounter() as counter:
            yield
        self._flops += counter.total
        self._measured += 1

    def add_texts(self, count: int) -> None:
        """Add the texts of a step."""
        self._texts += count
        self._counted += 1

    def metrics(self, done: int) -> dict[str, float]:
        """Texts and FLOPs of `done` steps; what was not counted in any step is left out."""
        found = {
            Metric.COST_TRAIN_TEXTS: done * self._texts / self._counted if self._counted else math.nan,
            Metric.COST_TRAIN_FLOPS: done * self._flops / self._measured if self._measured else math.nan,
        }
        return {str(name): value for name, value in found.items() if math.isfinite(value)}

    def state_dict(self) -> dict[str, float]:
        """The counts."""
        return {
            "texts": self._texts, "counted": self._counted, "flops": self._flops, "measured": self._measured,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._texts, self._flops = float(state["texts"]), float(state["flops"])
        self._counted, self._measured = int(state["counted"]), int(state["measured"])


def added(*costs: dict[str, float]) -> dict[str, float]:
    """Texts and FLOPs of the parts of a training; what a part does not know is left out of the sum's metrics."""
    names = (str(Metric.COST_TRAIN_TEXTS), str(Metric.COST_TRAIN_FLOPS))
    return {name: sum(part[name] for part in costs) for name in names if all(name in part for part in costs)}


__all__ = ["TrainingCost", "added"]
