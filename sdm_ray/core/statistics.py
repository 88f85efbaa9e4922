"""Means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import stdtrit

NUM_RESAMPLES = 10_000
"""Bootstrap resamples of an interval."""


def mean(values: Iterable[float]) -> float:
    """Mean; NaN of nothing."""
    items = list(values)
    return sum(items) / len(items) if items else math.nan


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % Student-t interval of the mean over seeds; NaN for fewer than two.

    It covers what differs between seeds (subset, order, head). The test examples are shared by all seeds, so their own
    sampling error is not in it.
    """
    if len(values) < 2:
        return math.nan, math.nan
    array = np.asarray(values, dtype=np.float64)
    half = t_quantile(len(values) - 1) * float(array.std(ddof=1)) / math.sqrt(len(values))
    return float(array.mean()) - half, float(array.mean()) + half


def t_quantile(degrees: int) -> float:
    """0.975 quantile of Student's t, to the six decimals that tables print (so published intervals can be redone)."""
    return round(float(stdtrit(degrees, 0.975)), 6)


def bootstrap_interval(groups: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over groups of the group means.

    Args:
        groups: values by seed of one or more groups; seeds are resampled within each group.
        seed: of the resampling.

    Returns:
        Low and high; NaN where a group has fewer than two values.
    """
    if any(len(group) < 2 for group in groups):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    total = np.zeros(NUM_RESAMPLES)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        total += values[generator.integers(len(values), size=(NUM_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(total / len(groups), (0.025, 0.975))
    return float(low), float(high)
