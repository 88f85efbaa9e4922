"""Accuracy as a function of budget: the expected maximum of search points, and extrapolation of a rising curve.

Two models are fitted: linear in the log of the budget (unbounded), and a power law with an asymptote. The model with
the smaller error on held-out budgets (above `FITTED_SHARE` of the largest) makes the forecast. Its interval covers the
bootstraps of both models, and so the uncertainty of this choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array: TypeAlias = NDArray[np.float64]

EXPONENTS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.5)
"""Candidate exponents of the power law."""
FITTED_SHARE = 1 / 3
"""For the comparison of both models, they are fitted to budgets up to this share of the largest."""


class Forecast(NamedTuple):
    """Values (A,) at larger budgets, with 95 % intervals."""

    expected: Array
    low: Array
    high: Array


def expected_maximum(values: Array, counts: Sequence[int]) -> Array:
    """Expected maximum of a random subset of N values, drawn without replacement, for K subset sizes.

    Args:
        values: (..., N).
        counts: K numbers from 1 to N.

    Returns:
        (..., K), increasing in K if `counts` are.
    """
    total = values.shape[-1]
    rank, count = np.arange(1, total + 1)[None, :], np.asarray(counts)[:, None]
    # The value of rank i is the largest of k in C(i - 1, k - 1) of C(N, k) draws.
    logs = _log_choose(rank - 1, count - 1) - _log_choose(np.full_like(rank, total), count)
    weights = np.where(rank >= count, np.exp(np.where(rank >= count, logs, 0.0)), 0.0)
    result: Array = np.sort(values, axis=-1) @ weights.T
    return result


def _log_choose(total: NDArray[np.int64], count: NDArray[np.int64]) -> Array:
    result: Array = gammaln(total + 1) - gammaln(count + 1) - gammaln(np.maximum(total - count, 0) + 1)
    return result


def forecast(budgets: Array, curve: Array, draws: Array, ahead: Array) -> Forecast:
    """Forecast a rising curve at larger budgets.

    The fitted increase is added to the last measured value. For each model the interval is the union of the percentile
    and the basic bootstrap: the maximum of a resample is biased low, so the percentile interval alone would be too low.

    Args:
        budgets: (K,), rising, K at least 3.
        curve: (K,) accuracies.
        draws: (R, K) bootstrap resamples of the curve.
        ahead: (A,) budgets above the last.
    """
    best = _better_kind(budgets, curve)
    lows, highs, expected = [], [], curve[-1:]
    for kind in (0, 1):
        value = _ahead(budgets, curve[None], ahead, kind)[0]
        low, high = np.quantile(_ahead(budgets, draws, ahead, kind), (0.025, 0.975), axis=0)
        lows.append(np.minimum(low, 2 * value - high))
        highs.append(np.maximum(high, 2 * value - low))
        expected = value if kind == best else expected
    return Forecast(expected, np.clip(np.min(lows, axis=0), 0, 1), np.clip(np.max(highs, axis=0), 0, 1))


def _better_kind(budgets: Array, curve: Array) -> int:
    """0 for linear in the log, 1 for a power law: the one with the smaller error on held-out budgets."""
    fitted = budgets <= FITTED_SHARE * budgets[-1]
    if fitted.sum() < 3:
        fitted = budgets < budgets[-1]
    errors = [
        float(np.square(_fit(budgets[fitted], curve[None, fitted], budgets[~fitted], kind)[0] - curve[~fitted]).mean())
        for kind in (0, 1)
    ]
    return int(errors[1] < errors[0])


def _ahead(budgets: Array, curves: Array, ahead: Array, kind: int) -> Array:
    """(R, A) extrapolated values of curves (R, K), between their last value and 1."""
    fitted = _fit(budgets, curves, np.concatenate([budgets[-1:], ahead]), kind)
    result: Array = np.minimum(curves[:, -1:] + np.maximum(fitted[:, 1:] - fitted[:, :1], 0), 1)
    return result


def _fit(budgets: Array, curves: Array, wanted: Array, kind: int) -> Array:
    """(R, A) values at other budgets of non-decreasing least-squares fits to curves (R, K)."""
    values, errors = [], []
    for power in (0.0,) if kind == 0 else EXPONENTS:
        scaled, there = _shape(budgets / budgets[0], power), _shape(wanted / budgets[0], power)
        design = np.stack([np.ones_like(scaled), scaled], axis=1)
        found = curves @ np.linalg.pinv(design).T
        falls = found[:, 1] < 0
        found[falls] = np.stack([curves[falls].mean(1), np.zeros(int(falls.sum()))], axis=1)
        errors.append(np.square(found @ design.T - curves).sum(1))
        values.append(found[:, :1] + found[:, 1:] * there)
    chosen = np.argmin(errors, axis=0)
    result: Array = np.stack(values)[chosen, np.arange(len(curves))]
    return result


def _shape(budgets: Array, power: float) -> Array:
    """Shape of the curve: log of the budget, or minus a negative power of it."""
    result: Array = -np.power(budgets, -power) if power else np.log(budgets)
    return result
