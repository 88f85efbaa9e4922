"""Sweeps: the only package that uses Ray and Optuna.

The entry point is `run_sweep` in `runner`. Importing this package imports neither of them.
"""

from sdm_ray.sweep.outcome import SweepOutcome
from sdm_ray.sweep.runner import run_sweep
from sdm_ray.sweep.view.live import LinesView, LiveView, SilentView, View

__all__ = ["LinesView", "LiveView", "SilentView", "SweepOutcome", "View", "run_sweep"]
