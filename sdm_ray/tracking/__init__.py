"""Experiment tracking: a small protocol, a no-op, and MLflow (imported only when it is used)."""

from __future__ import annotations

from pathlib import Path

from sdm_ray.config import TrackingSettings
from sdm_ray.tracking.base import NoTracker, Tracker


def open_tracker(settings: TrackingSettings, sweep_dir: Path) -> Tracker:
    """The tracker that the settings ask for; nothing is connected or written before its `start_sweep`."""
    if not settings.enabled:
        return NoTracker()
    from sdm_ray.tracking.mlflow import MlflowTracker

    return MlflowTracker(settings, sweep_dir)


__all__ = ["NoTracker", "Tracker", "open_tracker"]
