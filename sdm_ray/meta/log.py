"""The training log: metrics gather on the device and are read once an interval."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdm_ray.errors import RunError
from sdm_ray.types import Metric


class MetricLog:
    """Rows of means over an interval, and a watch for the first value that is not finite.

    Args:
        names: of the metrics.
        capacity: most steps in an interval.
        device: where the values are.
    """

    def __init__(self, names: tuple[str, ...], capacity: int, device: torch.device) -> None:
        self.rows: list[dict[str, float]] = []
        self._names = names
        self._buffer = torch.zeros(capacity, len(names), dtype=torch.float64, device=device)
        self._steps: list[int] = []
        self._draws: list[str] = []

    def add(self, step: int, values: Tensor, draw: str) -> None:
        """Take one step's metrics (M,), without reading them; `draw` names the adversaries of that step."""
        self._buffer[len(self._steps)] = values
        self._steps.append(step)
        self._draws.append(draw)

    def close_row(self, step: int) -> dict[str, float]:
        """Read the interval, append its row and start the next one.

        Raises:
            RunError: naming the step, the metric and the adversary where a value is not finite.
        """
        values = self.check()
        means = [math.fsum(column) / len(values) for column in zip(*values, strict=True)]
        row = {str(Metric.TRAIN_STEP): float(step), **dict(zip(self._names, means, strict=True))}
        self.rows.append(row)
        self._steps, self._draws = [], []
        return row

    def check(self) -> list[list[float]]:
        """Read the open interval.

        Raises:
            RunError: as `close_row`.
        """
        values: list[list[float]] = self._buffer[: len(self._steps)].tolist()
        for step, draw, row in zip(self._steps, self._draws, values, strict=True):
            for name, value in zip(self._names, row, strict=True):
                if not math.isfinite(value):
                    term = name.removeprefix("train/")
                    blame = f", met with {draw}" if draw else ""
                    raise RunError(
                        f"training diverged at outer step {step}: {term} is {value}{blame}; "
                        "lower train.learning_rate or the term's weight"
                    )
        return values

    def state_dict(self) -> dict[str, Any]:
        """Rows and the open interval."""
        buffer = self._buffer[: len(self._steps)]
        return {"rows": [dict(row) for row in self.rows], "buffer": buffer, "steps": list(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.rows, self._steps = state["rows"], state["steps"]
        self._draws = [""] * len(self._steps)
        self._buffer[: len(self._steps)] = state["buffer"].to(self._buffer.device)
