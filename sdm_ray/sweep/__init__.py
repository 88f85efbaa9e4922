"""The sweep: the only place that knows Ray and Optuna.

`run_sweep` in `runner` is the way in; importing this package imports neither.
"""

from sdm_ray.sweep.outcome import SweepOutcome
from sdm_ray.sweep.runner import run_sweep
from sdm_ray.sweep.view.live import LinesView, LiveView, SilentView, View

__all__ = ["LinesView", "LiveView", "SilentView", "SweepOutcome", "View", "run_sweep"]
