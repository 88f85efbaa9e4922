"""Index of what a sweep's journal already contains, so that nothing is recorded twice."""

from __future__ import annotations

from collections.abc import Mapping

from sdm_ray.tracking.outbox import SWEEP_RUN, Record
from sdm_ray.tracking.series import Series


class Recorded:
    """Recorded steps, values and tags, by run."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[int, float]] = {}
        self._steps: dict[str, int] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._series: dict[tuple[str, str], list[tuple[int, float]]] = {}
        self.begun: set[str] = set()
        """Trials with a run."""
        self.finished: set[str] = set()
        """Trials whose run has ended."""

    def remember(self, record: Record) -> None:
        """Store the step of each metric in a record, and its tags."""
        trial_id = record.get("trial", SWEEP_RUN)
        if record["call"] == "start":
            self.begun.add(trial_id)
        if record["call"] == "finish" and trial_id in self.begun:
            self.finished.add(trial_id)
        self._tags |= {(trial_id, name): value for name, value in record.get("tags", {}).items()}
        for name, values in record.get("series", {}).items():
            self._series[trial_id, name] = [(step, value) for step, value in values]
        if record["call"] not in ("log", "finish"):
            return
        step = record["step"]
        self._steps[trial_id] = max(step, self._steps.get(trial_id, 0))
        for name, value in record["metrics"].items():
            self._last[trial_id, name] = (step, value)

    def later(self, trial_id: str, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Metrics whose last recorded step is earlier than `step`."""
        return {name: value for name, value in metrics.items() if self._last.get((trial_id, name), (-1, 0.0))[0] < step}

    def changed(self, trial_id: str, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Metrics whose last recorded step is earlier than `step`, or whose value at `step` differs."""
        fresh = {}
        for name, value in metrics.items():
            last_step, last_value = self._last.get((trial_id, name), (-1, None))
            if step > last_step or (step == last_step and value != last_value):
                fresh[name] = value
        return fresh

    def new_tags(self, trial_id: str, tags: Mapping[str, str]) -> dict[str, str]:
        """Tags that are not recorded with these values."""
        return {name: value for name, value in tags.items() if self._tags.get((trial_id, name)) != value}

    def final(self, trial_id: str, metrics: Mapping[str, float]) -> tuple[int, dict[str, float], Series]:
        """Step for a trial's last metrics, changed metrics, and metrics without earlier steps."""
        step = self._steps.get(trial_id, 0)
        fresh, last = {}, {}
        alone: Series = {}
        for name, value in metrics.items():
            last_step, last_value = self._last.get((trial_id, name), (-1, None))
            if last_value is None:
                alone[name] = {0: value}  # MLflow draws bars for metrics without further steps
            elif value != last_value:
                fresh[name], last[name] = value, last_step
        return step + 1 if step in last.values() else step, fresh, alone

    def unlogged(self, trial_id: str, series: Series) -> dict[str, list[tuple[int, float]]]:
        """Steps and values of series that are not yet recorded with these values."""
        steps = {name: sorted(values.items()) for name, values in series.items()}
        return {name: values for name, values in steps.items() if self._series.get((trial_id, name)) != values}
