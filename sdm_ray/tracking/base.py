"""The interface that a sweep records itself through, and the tracker that records nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sdm_ray.core.result import TrialResult


class Tracker(Protocol):
    """Records a sweep and its trials; called on the driver alone, and never again after `finish_sweep`.

    No call waits for a server, except where it says so, and only `start_sweep` may raise. Calls for one trial may
    repeat after a retry or a resume: a tracker finds what is there and does not duplicate it.
    """

    @property
    def error(self) -> Exception | None:
        """Why tracking could not begin, once that is known: a `UsageError` or a `RunError`."""

    def start_sweep(self, name: str, settings: dict[str, Any], tags: dict[str, str], *, wait: bool = True) -> None:
        """Begin, or go on with, the sweep that lives in the tracker's folder.

        Args:
            name: of the sweep.
            settings: of the sweep; may nest.
            tags: further tags of its run.
            wait: wait for the first answer of the server, and raise where it is an error. Otherwise the call returns at
                once, and the error appears in `error`.

        Raises:
            UsageError: when the tracking settings cannot work.
            RunError: when the tracking server does not answer, or the folder cannot be written.
        """

    def start_trial(
        self, trial_id: str, params: dict[str, Any], tags: dict[str, str], *, name: str | None = None
    ) -> None:
        """A trial starts, or starts again; `params` may nest, and `name` is what people see, by default the id."""

    def log(self, trial_id: str, metrics: dict[str, float], step: int) -> None:
        """Metrics of one report. What was reported up to a step is not reported again by a trial that was resumed."""

    def finish_trial(self, result: TrialResult) -> None:
        """A trial has ended, however it ended."""

    def is_recorded(self, trial_id: str) -> bool:
        """Whether the beginning and the end of a trial are on record, so that nothing of them is to be sent again."""

    def log_sweep(self, metrics: dict[str, float], step: int) -> None:
        """Metrics of the sweep as a whole after `step` trials; the last ones of a step count."""

    def annotate(self, tags: Mapping[str, Mapping[str, Any]], *, description: str | None = None) -> None:
        """Set tags of trials that have begun, and the sweep's description in Markdown; what is so already is not sent.

        Args:
            tags: by trial id.
            description: None leaves it as it is.
        """

    def run_link(self, trial_id: str) -> dict[str, str]:
        """`mlflow_run` and `mlflow_url`, the id and the page of a trial's run; empty while it is not there."""

    def log_sweep_artifacts(self, files: list[Path]) -> None:
        """Files of the sweep as a whole, such as the frontier; a file of the same name is replaced."""

    def finish_sweep(self, status: str) -> None:
        """The sweep has ended: `complete`, `failed` or `stopped`. Waits a bounded time for what is still to deliver."""

    def ui_hint(self) -> str:
        """The command and the address that show what was tracked; empty without tracking."""


class NoTracker:
    """A tracker that records nothing."""

    error: Exception | None = None

    def start_sweep(self, name: str, settings: dict[str, Any], tags: dict[str, str], *, wait: bool = True) -> None:
        """Do nothing."""

    def start_trial(
        self, trial_id: str, params: dict[str, Any], tags: dict[str, str], *, name: str | None = None
    ) -> None:
        """Do nothing."""

    def log(self, trial_id: str, metrics: dict[str, float], step: int) -> None:
        """Do nothing."""

    def finish_trial(self, result: TrialResult) -> None:
        """Do nothing."""

    def is_recorded(self, trial_id: str) -> bool:
        """Nothing is to be sent."""
        return True

    def log_sweep(self, metrics: dict[str, float], step: int) -> None:
        """Do nothing."""

    def annotate(self, tags: Mapping[str, Mapping[str, Any]], *, description: str | None = None) -> None:
        """Do nothing."""

    def run_link(self, trial_id: str) -> dict[str, str]:
        """Return nothing."""
        return {}

    def log_sweep_artifacts(self, files: list[Path]) -> None:
        """Do nothing."""

    def finish_sweep(self, status: str) -> None:
        """Do nothing."""

    def ui_hint(self) -> str:
        """Return an empty text."""
        return ""
