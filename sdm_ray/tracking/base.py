"""Interface for recording a sweep, and the tracker that records nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sdm_ray.core.result import TrialResult


class Tracker(Protocol):
    """Records a sweep and its trials; called only on the driver, and not after `finish_sweep`.

    Calls do not wait for a server unless their docstring says so, and only `start_sweep` may raise. Calls for one trial
    may be repeated after a retry or a resume; a tracker must not duplicate records.
    """

    @property
    def error(self) -> Exception | None:
        """Why tracking could not start, once known: a `UsageError` or a `RunError`."""

    def start_sweep(self, name: str, settings: dict[str, Any], tags: dict[str, str], *, wait: bool = True) -> None:
        """Start or resume recording the sweep in the tracker's folder.

        Args:
            name: name of the sweep.
            settings: settings of the sweep; may be nested.
            tags: additional tags of its run.
            wait: wait for the server's first answer, and raise if it is an error. Otherwise the call returns
                immediately, and the error appears in `error`.

        Raises:
            UsageError: if the tracking settings cannot work.
            RunError: if the tracking server does not answer, or the folder cannot be written.
        """

    def start_trial(
        self, trial_id: str, params: dict[str, Any], tags: dict[str, str], *, name: str | None = None
    ) -> None:
        """Record that a trial starts or restarts; `params` may be nested; `name` is displayed (default: the id)."""

    def log(self, trial_id: str, metrics: dict[str, float], step: int) -> None:
        """Record the metrics of one report. A resumed trial does not repeat steps that it reported before."""

    def finish_trial(self, result: TrialResult) -> None:
        """Record that a trial has ended, with any status."""

    def is_recorded(self, trial_id: str) -> bool:
        """Whether the start and the end of a trial are recorded already, so that neither is sent again."""

    def log_sweep(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics of the whole sweep after `step` trials; the last values of a step count."""

    def annotate(self, tags: Mapping[str, Mapping[str, Any]], *, description: str | None = None) -> None:
        """Set tags of started trials and the sweep's Markdown description; unchanged values are not sent.

        Args:
            tags: by trial id.
            description: None leaves it unchanged.
        """

    def run_link(self, trial_id: str) -> dict[str, str]:
        """`mlflow_run` and `mlflow_url`, the id and the page of a trial's run; empty until the run exists."""

    def log_sweep_artifacts(self, files: list[Path]) -> None:
        """Record files of the whole sweep, such as the frontier; a file of the same name is replaced."""

    def finish_sweep(self, status: str) -> None:
        """Record the sweep's end: `complete`, `failed` or `stopped`. Waits a limited time for pending deliveries."""

    def ui_hint(self) -> str:
        """Command and address for viewing the tracked runs; empty without tracking."""


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
        """True, because there is nothing to send."""
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
        """Return an empty string."""
        return ""
