"""Elapsed time of a sweep, resource hours of its trials, and the expected remaining time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from sdm_ray.config import SweepSettings
from sdm_ray.core.result import Status
from sdm_ray.sweep.state.ledger import Entry, Role
from sdm_ray.sweep.state.snapshot import Running


class SweepClock:
    """Tracks durations of trials and of the sweep; computes spent budgets and the remaining time.

    Args:
        settings: the sweep's settings.
        earlier_seconds: total run time of earlier drivers.
    """

    def __init__(self, settings: SweepSettings, *, earlier_seconds: float) -> None:
        self.started = time.monotonic()
        self._search = settings.search
        self._gpus_per_trial = settings.resources.gpus_per_trial
        self._earlier_seconds = earlier_seconds
        self._num_finished = 0
        self.forget_trials()

    def forget_trials(self) -> None:
        """Clear the durations of trials, to be added again by `add`."""
        self._occupied_seconds = 0.0
        self._durations: dict[Role, list[float]] = {}

    def add(self, entry: Entry) -> None:
        """Count the duration of an ended trial; failed trials do not count towards the mean."""
        assert entry.result is not None
        self._occupied_seconds += entry.seconds
        if entry.seconds and entry.result.status is not Status.FAILED:
            sums = self._durations.setdefault(entry.role, [0.0, 0])
            sums[0] += entry.seconds
            sums[1] += 1

    def count_finished(self) -> None:
        """Count a trial that ended under this driver."""
        self._num_finished += 1

    @property
    def elapsed_seconds(self) -> float:
        """Wall-clock seconds of the sweep, including earlier drivers (up to the end of their last trial)."""
        return self._earlier_seconds + time.monotonic() - self.started

    def gpu_hours(self, running: Iterable[Running]) -> float:
        """GPU hours used by all trials, including running ones."""
        now = sum(time.monotonic() - trial.started for trial in running)
        return (self._occupied_seconds + now) * self._gpus_per_trial / 3600

    def spent(self, running: Iterable[Running]) -> str | None:
        """Message that names the budget of hours that is spent, after which no further point may begin; else None."""
        hours, gpu_hours = self._search.max_hours, self._search.max_gpu_hours
        if hours is not None and self.elapsed_seconds >= hours * 3600:
            return f"search.max_hours ({hours:g}) have passed"
        if gpu_hours is not None and self.gpu_hours(running) >= gpu_hours:
            return f"search.max_gpu_hours ({gpu_hours:g}) are spent"
        return None

    @property
    def trials_per_hour(self) -> float | None:
        """Trials per hour that ended under this driver; None before the first."""
        hours = (time.monotonic() - self.started) / 3600
        return self._num_finished / hours if self._num_finished else None

    def seconds_left(
        self,
        unstarted: Mapping[Role, int],
        unfinished: Iterable[Entry],
        running: Mapping[str, Running],
        concurrency: int,
    ) -> float | None:
        """Expected seconds until all trials have ended, from mean durations by role; None until a trial has ended.

        Args:
            unstarted: number of trials that have not begun, by role.
            unfinished: trials that have begun and not ended.
            running: the unfinished trials that occupy a process, by id.
            concurrency: number of trials that run at once.
        """
        total = sum(self._durations.get(role, (0.0, 0))[0] for role in unstarted)
        count = sum(self._durations.get(role, (0.0, 0))[1] for role in unstarted)
        if not count:
            return None
        means = dict.fromkeys(unstarted, total / count)
        means |= {role: seconds / number for role, (seconds, number) in self._durations.items()}
        left = sum(number * means[role] for role, number in unstarted.items())
        for entry in unfinished:
            trial = running.get(entry.trial_id)
            spent = time.monotonic() - trial.started if trial else 0.0
            left += max(means[entry.role] - spent, 0.1 * means[entry.role])
        left /= max(1, concurrency)
        hours = self._search.max_hours
        return left if hours is None else min(left, max(0.0, hours * 3600 - self.elapsed_seconds))
