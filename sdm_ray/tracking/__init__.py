"""Experiment tracking: a small protocol, a no-op tracker, and MLflow (imported only if it is used)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdm_ray.config import TrackingSettings
from sdm_ray.tracking.base import NoTracker, Tracker
from sdm_ray.tracking.place import choose_place


def open_tracker(
    settings: TrackingSettings, sweep_dir: Path, *, fetch: Callable[[str], None] = lambda trial_id: None
) -> Tracker:
    """Create the tracker for these settings; it neither connects nor writes before its `start_sweep`.

    Args:
        settings: tracking settings, or that tracking is off; `choose_place` fills in what they leave out.
        sweep_dir: the sweep's folder; it holds records until they are delivered.
        fetch: copies the folder of an ended trial to this machine, if trials run elsewhere.
    """
    if not settings.enabled:
        return NoTracker()
    from sdm_ray.tracking.mlflow import MlflowTracker

    return MlflowTracker(choose_place(settings, sweep_dir).apply(settings), sweep_dir, fetch=fetch)


__all__ = ["NoTracker", "Tracker", "open_tracker"]
