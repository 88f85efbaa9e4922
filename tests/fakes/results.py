"""Results of trials that never ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult


def accuracies(desired: float, harmful: float) -> dict[str, float]:
    """The metrics that a frontier reads."""
    return {str(Metric.DESIRED_ACCURACY): desired, str(Metric.HARMFUL_WORST_ACCURACY): harmful}


def trial_result(trial_id: str, **changes: Any) -> TrialResult:
    """A complete trial of the method `mlac` without metrics, in a folder of its name; `changes` are other fields."""
    values: dict[str, Any] = {
        "trial_id": trial_id,
        "config_hash": "0",
        "method": "mlac",
        "seed": 0,
        "status": Status.COMPLETE,
        "metrics": {},
        "output_dir": Path(trial_id),
    }
    return TrialResult(**{**values, **changes})
