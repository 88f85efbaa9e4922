"""Accuracy by budget: the expected maximum of search points, and the extrapolation of a rising curve.

A curve is extrapolated by two kinds of fit: linear in the log of the budget, which never ends, and a power law towards
an asymptote. The forecast is that of the kind with the smaller error on budgets above `FITTED_SHARE` of the largest,
which it was not fitted to there; its interval holds the bootstraps of both, so that it covers the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array: TypeAlias = NDArray[np.float64]

EXPONENTS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.5)
"""Exponents of the power law that are tried."""
FITTED_SHARE = 1 / 3
"""Budgets up to this share of the largest are fitted where the two kinds are compared."""


class Forecast(NamedTuple):
    """Values (A,) at budgets ahead, with the ends of their 95 % intervals."""

    expected: Array
    low: Array
    high: Array


def expected_maximum(values: Array, counts: Sequence[int]) -> Array:
    """Expected maximum of a subset of N values, drawn without replacement, for K subset sizes.

    Args:
        values: (..., N).
        counts: K numbers from 1 to N.

    Returns:
        (..., K), rising along K where `counts` do.
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
    """The forecast of a rising curve at larger budgets.

    The rise is that of a fit, added to the last value that was measured. For each kind of fit the interval is the wider
    of the percentile and the basic bootstrap at either end: the largest of a resample lies below the largest of the
    sample, so that the first alone is too low.

    Args:
        budgets: (K,), rising, K at least 3.
        curve: (K,) accuracies.
        draws: (R, K) resamples of the curve.
        ahead: (A,) budgets beyond the last.
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
    """0 for linear in the log, 1 for a power law: the smaller error on budgets that were not fitted."""
    fitted = budgets <= FITTED_SHARE * budgets[-1]
    if fitted.sum() < 3:
        fitted = budgets < budgets[-1]
    errors = [
        float(np.square(_fit(budgets[fitted], curve[None, fitted], budgets[~fitted], kind)[0] - curve[~fitted]).mean())
        for kind in (0, 1)
    ]
    return int(errors[1] < errors[0])


def _ahead(budgets: Array, curves: Array, ahead: Array, kind: int) -> Array:
    """(R, A) values of curves (R, K) ahead: never below where they end, at most 1."""
    fitted = _fit(budgets, curves, np.concatenate([budgets[-1:], ahead]), kind)
    result: Array = np.minimum(curves[:, -1:] + np.maximum(fitted[:, 1:] - fitted[:, :1], 0), 1)
    return result


def _fit(budgets: Array, curves: Array, wanted: Array, kind: int) -> Array:
    """(R, A) values at other budgets of the least-squares fits to curves (R, K), which never fall."""
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
    """The curve's shape: log of the budget, or minus a negative power of it."""
    result: Array = -np.power(budgets, -power) if power else np.log(budgets)
    return result
