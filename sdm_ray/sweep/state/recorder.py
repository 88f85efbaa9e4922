"""Combines a sweep's state with its ledger: every change is written to disk before it is applied."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sdm_ray.config import SweepSettings
from sdm_ray.core.result import TrialResult
from sdm_ray.sweep.state.ledger import Entry, Ledger
from sdm_ray.sweep.state.state import SweepState


class Recorder:
    """Writes a sweep's changes to its ledger, and then applies them to its state.

    Args:
        state: state created from the ledger's record.
        ledger: ledger that changes are written to.
    """

    def __init__(self, state: SweepState, ledger: Ledger) -> None:
        self.state = state
        self.ledger = ledger

    @classmethod
    def open(cls, settings: SweepSettings, folder: Path, *, concurrency: int = 1) -> Recorder:
        """Open the ledger in a sweep's folder, and create the state from it.

        Raises:
            RunError: if the ledger is damaged beyond repair, or cannot be read or written.
        """
        ledger = Ledger(folder)
        return cls(SweepState(settings, ledger.record, concurrency=concurrency), ledger)

    def name_study(self, name: str, sampler_options: dict[str, Any]) -> None:
        """Record the name of the Optuna study and its sampler's options."""
        self.ledger.name_study(name, sampler_options)
        self.ledger.record.study_name, self.ledger.record.sampler_options = name, sampler_options

    def start(self, entry: Entry) -> Entry:
        """Record a trial before it runs, and return the entry that the state keeps."""
        return self.state.start(self.ledger.start(entry))

    def finish(self, result: TrialResult) -> TrialResult:
        """Record and return a trial's result as checked by `SweepState.checked`, which may change it to a failure."""
        result = self.state.checked(result)
        seconds = self.state.running_seconds(result.trial_id)
        kept = self.ledger.finish(result, seconds=seconds, elapsed=self.state.clock.elapsed_seconds)
        self.state.finish(kept, seconds=round(seconds, 3))
        return result

    def give_up(self, trial_id: str, reason: str) -> None:
        """Record that a trial's process was ended from outside, and that this driver does not run the trial again."""
        self.ledger.give_up(trial_id, reason)
        self.state.give_up(trial_id, reason)

    def at_rung(self, trial_id: str, step: int, desired: float, harmful: float) -> str | None:
        """Record a trial's accuracies at a rung; returns the reason if the trial is to be pruned, else None."""
        if trial_id not in self.state.rungs.get(step, {}):
            self.ledger.record_rung(trial_id, step, desired, harmful)
        return self.state.at_rung(trial_id, step, desired, harmful)

    def retry_infrastructure(self) -> list[str]:
        """Restart trials that were excluded after too many external kills; returns their ids."""
        entries = self.state.infrastructure()
        for entry in entries:
            self.start(dataclasses.replace(entry, num_killed=0, killed=""))
        return [entry.trial_id for entry in entries]

    def restart_failed_references(self) -> None:
        """Restart failed references and final attacks."""
        for entry in self.state.failed_references():
            self.start(dataclasses.replace(entry, result=None))
