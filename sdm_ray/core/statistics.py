"""Means and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import stdtrit

NUM_RESAMPLES = 10_000
"""Number of bootstrap resamples for an interval."""


def mean(values: Iterable[float]) -> float:
    """Mean; NaN for no values."""
    items = list(values)
    return sum(items) / len(items) if items else math.nan


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % Student-t interval of the mean over seeds; NaN for fewer than two.

    It covers the variation between seeds (subset, order, head). All seeds share the test examples, so the sampling
    error of these is not included.
    """
    if len(values) < 2:
        return math.nan, math.nan
    array = np.asarray(values, dtype=np.float64)
    half = t_quantile(len(values) - 1) * float(array.std(ddof=1)) / math.sqrt(len(values))
    return float(array.mean()) - half, float(array.mean()) + half


def pooled_interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean over groups of the group means, for independent groups.

    Variances of the group means add up; the degrees of freedom are those of Welch and Satterthwaite. A single group
    gives `t_interval`. Pairing values of different groups by index instead could give any width, even 0.

    Returns:
        Low and high; NaN if a group has fewer than two values.
    """
    if not groups or any(len(group) < 2 for group in groups):
        return math.nan, math.nan
    parts = [float(np.var(group, ddof=1)) / len(group) for group in groups]
    center = mean(mean(group) for group in groups)
    total = sum(parts)
    spread = sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    if spread == 0:
        return center, center
    half = float(stdtrit(total**2 / spread, 0.975)) * math.sqrt(total) / len(groups)
    return center - half, center + half


def t_quantile(degrees: int) -> float:
    """0.975 quantile of Student's t, to the six decimals of printed tables (published intervals are reproducible)."""
    return round(float(stdtrit(degrees, 0.975)), 6)


def bootstrap_interval(groups: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over groups of the group means.

    Args:
        groups: values by seed of one or more groups; seeds are resampled within each group.
        seed: seed of the resampling.

    Returns:
        Low and high; NaN if a group has fewer than two values.
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
