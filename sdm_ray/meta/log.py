"""The training log: metrics are collected on the device and copied to the host once per interval."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdm_ray.core.errors import RunError
from sdm_ray.core.metric_names import Metric


class MetricLog:
    """Log rows, each the mean of the metrics over an interval; raises an error for a value that is not finite.

    Args:
        names: names of the M metrics.
        capacity: most steps in an interval.
        device: device of the values.
    """

    def __init__(self, names: tuple[str, ...], capacity: int, device: torch.device) -> None:
        self.rows: list[dict[str, float]] = []
        self._names = names
        self._buffer = torch.zeros(capacity, len(names), dtype=torch.float64, device=device)
        self._steps: list[int] = []
        self._draws: list[str] = []
        self.last_draw = ""
        """Description of the last step's adversaries."""

    def add(self, step: int, values: Tensor, draw: str) -> None:
        """Store one step's metrics (M,) without synchronising; `draw` describes that step's adversaries."""
        self._buffer[len(self._steps)] = values
        self._steps.append(step)
        self._draws.append(draw)
        self.last_draw = draw

    def close_row(self, step: int) -> dict[str, float]:
        """Read the interval, append its row and start the next one.

        Raises:
            RunError: if a value is not finite; the message names the step, the metric and the adversaries.
        """
        values = self.check()
        means = [math.fsum(column) / len(values) for column in zip(*values, strict=True)]
        row = {str(Metric.TRAIN_STEP): float(step), **dict(zip(self._names, means, strict=True))}
        self.rows.append(row)
        self._steps, self._draws = [], []
        return row

    def note(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Add values that were measured after a step to that step's row (a new one if it has none); returns the row.

        Raises:
            RunError: as `close_row`.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise diverged(step, name, value, self.last_draw)
        if not self.rows or self.rows[-1][Metric.TRAIN_STEP] != step:
            self.rows.append({str(Metric.TRAIN_STEP): float(step)})
        self.rows[-1].update(values)
        return self.rows[-1]

    def check(self) -> list[list[float]]:
        """Read the values of the open interval, one list per step, and check that they are finite.

        Raises:
            RunError: as `close_row`.
        """
        values: list[list[float]] = self._buffer[: len(self._steps)].tolist()
        for step, draw, row in zip(self._steps, self._draws, values, strict=True):
            for name, value in zip(self._names, row, strict=True):
                if not math.isfinite(value):
                    raise diverged(step, name, value, draw)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Rows and the open interval."""
        buffer = self._buffer[: len(self._steps)]
        return {
            "rows": [dict(row) for row in self.rows],
            "buffer": buffer,
            "steps": list(self._steps),
            "draws": list(self._draws),
            "last_draw": self.last_draw,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.rows, self._steps, self._draws = state["rows"], state["steps"], state["draws"]
        self.last_draw = state["last_draw"]
        self._buffer[: len(self._steps)] = state["buffer"].to(self._buffer.device)


def diverged(step: int, name: str, value: float | None, draw: str) -> RunError:
    """The error for a metric that is not finite, or for weights (`value` None); it names the step's adversaries."""
    found = f"{name} are not finite" if value is None else f"{name.removeprefix('train/')} is {value}"
    blame = f", met with {draw}" if draw else ""
    return RunError(
        f"training diverged at outer step {step}: {found}{blame}; lower train.learning_rate or the term's weight"
    )
