"""Combines the trials of a point, which differ in their training seed, to means with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult


def combined(results: Sequence[TrialResult], *, point: str, intervals: Collection[str]) -> TrialResult:
    """Result of a point: that of its single trial, or the means over its seeds.

    If one seed failed, the point failed; likewise for stopped and infeasible. It passes the audit if all its seeds do.

    Args:
        results: one for each training seed, in order; if one is not complete, others may be missing.
        point: id of the point.
        intervals: metrics that get a 95 % Student t interval of the mean over seeds. Intervals of single trials are
            dropped, because they cover only the attacker's seeds.
    """
    if len(results) == 1:
        return dataclasses.replace(results[0], trial_id=point)
    for status in (Status.FAILED, Status.STOPPED, Status.INFEASIBLE):
        for result in results:
            if result.status is status:
                return dataclasses.replace(result, trial_id=point, error=f"{result.trial_id}: {result.error}")
    metrics: dict[str, float] = {}
    for name in results[0].metrics:
        if name.endswith(("/low", "/high")) or not all(name in result.metrics for result in results):
            continue
        values = [result.metrics[name] for result in results]
        mean = min(values) if name == Metric.AUDIT_PASSED else math.fsum(values) / len(values)
        metrics[name] = mean
        if name in intervals and all(map(math.isfinite, values)):
            from sdm_ray.core.statistics import t_interval

            metrics[Metric.low(name)], metrics[Metric.high(name)] = t_interval(values)
    failed = {name: said for result in results[::-1] for name, said in result.failed_checks.items()}
    return dataclasses.replace(results[0], trial_id=point, metrics=metrics, failed_checks=failed)
