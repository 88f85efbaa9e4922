"""Experiment tracking: a small protocol, a no-op, and MLflow (imported only when it is used)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdm_ray.config import TrackingSettings
from sdm_ray.tracking.base import NoTracker, Tracker
from sdm_ray.tracking.place import choose_place


def open_tracker(
    settings: TrackingSettings, sweep_dir: Path, *, fetch: Callable[[str], None] = lambda trial_id: None
) -> Tracker:
    """The tracker that the settings ask for; nothing is connected or written before its `start_sweep`.

    Args:
        settings: where to track, or that nothing is tracked; what they leave out is chosen by `choose_place`.
        sweep_dir: the sweep's folder; records wait there until they are delivered.
        fetch: brings the folder of a trial that has ended to this machine, where trials run elsewhere.
    """
    if not settings.enabled:
        return NoTracker()
    from sdm_ray.tracking.mlflow import MlflowTracker

    return MlflowTracker(choose_place(settings, sweep_dir).apply(settings), sweep_dir, fetch=fetch)


__all__ = ["NoTracker", "Tracker", "open_tracker"]
