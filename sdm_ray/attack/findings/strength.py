"""Strength of an attack: accuracy as a function of its budget, and the forecast for ten times that budget.

Search: the best of k random search points scores the expected maximum of k values
(Dodge et al., arXiv 1909.03004; without replacement, which is unbiased, Tang et al., arXiv 2004.07453). Examples: the
worst case at each n. `extrapolation` describes how both are extrapolated.

In simulations (values of search points normal, uniform, beta or of two kinds; 12 to 200 points at four n) the 95 %
interval of the search covered the truth in 85 to 100 % of cases. Attacks that no search point came near cannot be
forecast: if one point in fifty succeeds, coverage was 56 to 91 %. Points are treated as independent draws, which those
of an adaptive sampler are not, and the best validation score rises with the number of points by selection alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdm_ray.attack.findings.extrapolation import Array, expected_maximum, forecast
from sdm_ray.attack.report import AttackReport, units
from sdm_ray.core.metric_names import Metric

TIMES = 10
"""Forecast budget as a multiple of the budget that was used."""
LEAST_POINTS, LEAST_SIZES = 8, 3
"""Fewest search points at each n, and fewest sizes n, for an extrapolation."""
NUM_RESAMPLES = 1000
"""Number of bootstrap resamples."""
NUM_BUDGETS, NUM_AHEAD = 16, 9
"""Number of log-spaced budgets for fitting curves and for drawing forecasts."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Accuracy as a function of budget, measured and forecast. Unknown interval ends are NaN."""

    budgets: tuple[float, ...]
    """In increasing order."""
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    """Of 95 % intervals."""
    high: tuple[float, ...]
    ahead: tuple[float, ...] = ()
    """Budgets from the largest measured one up to `TIMES` times as much; empty without a forecast."""
    ahead_accuracy: tuple[float, ...] = ()
    ahead_low: tuple[float, ...] = ()
    ahead_high: tuple[float, ...] = ()
    reason: str = ""
    """Why there is no forecast."""

    @property
    def forecast(self) -> tuple[float, float, float]:
        """Accuracy at `TIMES` the largest budget with its 95 % interval; NaN without a forecast."""
        if not self.ahead:
            return math.nan, math.nan, math.nan
        return self.ahead_accuracy[-1], self.ahead_low[-1], self.ahead_high[-1]


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Accuracy of an attack as a function of both of its budgets."""

    search: Trend
    """Best validation accuracy, mean over n, against total search FLOPs."""
    unit: str
    """Unit of the search budget: FLOPs, or search points at each n if FLOPs were not recorded."""
    examples: Trend
    """Worst-case test accuracy against n."""

    def describe(self) -> str:
        """Summary in one sentence."""
        return (
            f"{_said(self.search, 'search', 'on attacker-validation')}; {_said(self.examples, 'examples', 'on test')}"
        )

    def metrics(self) -> dict[str, float]:
        """Forecasts by metric name, without missing ones."""
        result: dict[str, float] = {}
        for metric, trend in ((Metric.STRENGTH_SEARCH, self.search), (Metric.STRENGTH_EXAMPLES, self.examples)):
            if trend.ahead:
                names = (str(metric), Metric.low(metric), Metric.high(metric))
                result |= dict(zip(names, trend.forecast, strict=True))
        return result


def attack_strength(report: AttackReport, *, seed: int = 0) -> Strength:
    """Compute an attack's strength from its records.

    Args:
        report: the attack; repeated searches count as one longer search.
        seed: seed of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    search, unit = _search_trend(report, generator)
    return Strength(search=search, unit=unit, examples=_examples_trend(report, generator))


def _search_trend(report: AttackReport, generator: np.random.Generator) -> tuple[Trend, str]:
    sizes, failed = _search_points(report)
    total = min((len(values) for values, _ in sizes), default=0)
    if not total or failed:
        where = f" at n = {', '.join(map(str, failed))}" if failed else ""
        return _nothing(f"no search point finished{where}"), "FLOPs"
    counts = sorted({round(count) for count in np.geomspace(1, total, NUM_BUDGETS)})
    curve = np.mean([expected_maximum(values, counts) for values, _ in sizes], axis=0)
    cost = sum(float(flops.mean()) for _, flops in sizes)
    scale, unit = (cost, "FLOPs") if math.isfinite(cost) and cost > 0 else (1.0, "search points")
    budgets = np.array(counts, dtype=np.float64)
    if total < LEAST_POINTS:
        reason = f"fewer than {LEAST_POINTS} search points at an n ({total})"
        return _trend(budgets * scale, curve, reason=reason), unit
    draws = np.zeros((NUM_RESAMPLES, len(counts)))
    for values, _ in sizes:
        chosen = generator.integers(len(values), size=(NUM_RESAMPLES, len(values)))
        draws += expected_maximum(values[chosen], counts) / len(sizes)
    return _trend(budgets, curve, draws, scale=scale), unit


def _search_points(report: AttackReport) -> tuple[list[tuple[Array, Array]], list[int]]:
    """Validation accuracy and FLOPs of the search points at each n, and the sizes n at which none finished.

    A failed point counts as chance.
    """
    found: dict[int, dict[tuple[str, int, int], list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in report.records:
        if record.phase == "search":
            key = (record.family, record.repeat, record.trial)
            found[record.num_examples][key].append((record.val_accuracy, record.flops))
    sizes, failed = [], []
    for size, points in sorted(found.items()):
        scores = [[value for value, _ in point if math.isfinite(value)] for point in points.values()]
        if not any(scores):
            failed.append(size)
        values = [sum(score) / len(score) if score else 1 / report.num_classes for score in scores]
        flops = [sum(cost for _, cost in point) for point in points.values()]
        sizes.append((np.array(values), np.array(flops)))
    return sizes, failed


def _examples_trend(report: AttackReport, generator: np.random.Generator) -> Trend:
    cells = [cell for cell in report.cells if cell.valid and math.isfinite(cell.accuracy)]
    budgets = np.array([cell.num_examples for cell in cells], dtype=np.float64)
    accuracy = np.array([cell.accuracy for cell in cells])
    seeds = [units(cell.seed_accuracies, report.num_searches) for cell in cells]
    known = [np.array([value for value in values if math.isfinite(value)]) for values in seeds]
    reason = ""
    if len(cells) < LEAST_SIZES:
        reason = f"fewer than {LEAST_SIZES} sizes n with a valid result ({len(cells)})"
    elif any(len(values) < 2 for values in known):
        reason = "one re-run at an n gives no interval"
    if reason:
        low, high = [cell.accuracy_low for cell in cells], [cell.accuracy_high for cell in cells]
        return _trend(budgets, accuracy, reason=reason, low=low, high=high)
    # With few seeds, intervals come from Student's t distribution; a bootstrap would be too narrow.
    errors = np.array([values.std(ddof=1) / math.sqrt(len(values)) for values in known])
    shifts = np.stack([generator.standard_t(len(values) - 1, NUM_RESAMPLES) for values in known], axis=1)
    draws = np.clip(accuracy + shifts * errors, 0, 1)
    low, high = [cell.accuracy_low for cell in cells], [cell.accuracy_high for cell in cells]
    return _trend(budgets, accuracy, draws, low=low, high=high)


def _nothing(reason: str) -> Trend:
    return Trend(budgets=(), accuracy=(), low=(), high=(), reason=reason)


def _trend(
    budgets: Array,
    curve: Array,
    draws: Array | None = None,
    *,
    scale: float = 1.0,
    reason: str = "",
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
) -> Trend:
    """A curve with intervals and, if there are resamples, a forecast.

    Args:
        budgets: (K,), rising.
        curve: (K,) accuracies.
        draws: (R, K) resamples of the curve.
        scale: cost of one unit of `budgets`.
        reason: why there are no resamples.
        low: lower ends of intervals; None computes them from the resamples.
        high: upper ends.
    """
    unknown = np.full(len(budgets), math.nan)
    ends = (unknown, unknown) if draws is None else np.quantile(draws, (0.025, 0.975), axis=0)
    trend = Trend(
        budgets=tuple((budgets * scale).tolist()),
        accuracy=tuple(curve.tolist()),
        low=tuple(ends[0].tolist() if low is None else low),
        high=tuple(ends[1].tolist() if high is None else high),
        reason=reason,
    )
    if draws is None:
        return trend
    ahead = np.geomspace(budgets[-1], TIMES * budgets[-1], NUM_AHEAD)
    values = forecast(budgets, curve, draws, ahead)
    return dataclasses.replace(
        trend,
        ahead=tuple((ahead * scale).tolist()),
        ahead_accuracy=tuple(values.expected.tolist()),
        ahead_low=tuple(values.low.tolist()),
        ahead_high=tuple(values.high.tolist()),
    )


def _said(trend: Trend, budget: str, where: str) -> str:
    if not trend.ahead:
        return f"what ten times the {budget} would find cannot be told: {trend.reason}"
    value, low, high = trend.forecast
    return (
        f"ten times the {budget} would be expected to find {value:.3f} {where} (95 % interval {low:.2f} to {high:.2f}; "
        f"now {trend.accuracy[-1]:.3f})"
    )
