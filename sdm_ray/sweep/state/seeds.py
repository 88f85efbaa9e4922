"""Combines the trials of a point, which differ in their training seed: means, with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult


def combined(results: Sequence[TrialResult], *, point: str, intervals: Collection[str]) -> TrialResult:
    """The result of a point: that of its one trial, or the means over its seeds.

    A point counts only whole: where a seed failed it failed, where one was stopped it was stopped. It passes the audit
    where all its seeds do.

    Args:
        results: one for each training seed, in their order; where one of them is not complete, others may be missing.
        point: its id.
        intervals: metrics that get a 95 % Student interval of the mean over seeds. An interval that a single trial has
            is over the attacker's seeds, a narrower question, and is dropped.
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
