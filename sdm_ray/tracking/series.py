"""Which metrics of a trial are logged as MLflow metrics, and in what form; the others are kept in tags.

MLflow plots a metric against its steps. Measurements at several numbers n of labelled examples are therefore one metric
with n as its step, and measurements at rungs one with the outer step: a comparison of runs then shows the attack's
curves. Intervals and values for tables only would be charts of a single point each. They are kept as JSON in tags
instead, together with the series' values under their own names, so that `measured` restores a run's metrics as the
trial had them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from sdm_ray.tracking.naming import MAX_TAG

BY_N = "_by_n"
"""Suffix of metrics whose steps are numbers of labelled examples."""
FAILED_CHECKS = "sdm_ray.failed_checks"
"""Tag of a trial's run: observations of failed checks of the audit, by name, as JSON."""
KEPT_TAG = "sdm_ray.metrics."
"""Prefix of the tags with metrics that are not logged under their own names; a number follows."""
_AT_N = re.compile(r"(?P<head>.+)/n(?P<n>\d+)(?:/(?P<tail>[^/]+))?")
_AT_RUNG = re.compile(r"rung/(?P<step>\d+)/(?P<tail>.+)")
_NOT_SHOWN = re.compile(
    r"(again/[^/]+/)?(.+/(low|high)|train/seconds_left|desired/loss|benign/.+|kept/benign/.+|kept/desired/n\d+|scratch/\w+_accuracy"
    r"|harmful/(mean_accuracy|base_rate|bounded_accuracy|n\d+/(loss|macro_f1|mutual_information))"
    r"|regret/(loss|n\d+)|utility/n\d+/.+|recovery/(steps|trials|flops)|cost/num_fine_tunes)"
)

Series = dict[str, dict[int, float]]
"""Values by step, by metric name."""


def split(metrics: Mapping[str, float], objectives: Collection[str] = ()) -> tuple[dict[str, float], Series]:
    """Metrics to log: single values, and series with steps of their own.

    Args:
        metrics: values by legal names.
        objectives: metrics that are always logged under their own names.
    """
    single: dict[str, float] = {}
    series: Series = {}
    for name, value in metrics.items():
        shown, step = _place(name)
        if name in objectives or shown == name:
            single[name] = value
        if step is not None:
            series.setdefault(shown, {})[step] = value
    return single, series


@lru_cache(maxsize=4096)
def _place(name: str) -> tuple[str, int | None]:
    """Name that a metric is logged under, empty if it is not logged, and its own step if it has one."""
    if _NOT_SHOWN.fullmatch(name):
        return "", None
    if match := _AT_RUNG.fullmatch(name):
        return f"rung/{match['tail']}", int(match["step"])
    if match := _AT_N.fullmatch(name):
        tail = "" if match["tail"] is None else f"/{match['tail']}"
        return f"{match['head']}{tail}{BY_N}", int(match["n"])
    return name, None


def kept_tags(metrics: Mapping[str, float], logged: Collection[str]) -> dict[str, str]:
    """Tags with the metrics that are not among the logged names; empty if all are."""
    rest = {name: value for name, value in sorted(metrics.items()) if name not in logged}
    text = json.dumps(rest, separators=(",", ":")) if rest else ""
    return {f"{KEPT_TAG}{at // MAX_TAG}": text[at : at + MAX_TAG] for at in range(0, len(text), MAX_TAG)}


def measured(metrics: Mapping[str, float], tags: Mapping[str, str]) -> dict[str, float]:
    """Restore a trial's metrics from the last values and the tags of its run.

    Older runs have all metrics under their own names; these are returned unchanged.

    Raises:
        ValueError: if the tags are damaged.
    """
    parts = {int(name.removeprefix(KEPT_TAG)): text for name, text in tags.items() if name.startswith(KEPT_TAG)}
    if not parts:
        return dict(metrics)
    text = "".join(parts[index] for index in sorted(parts))
    kept: dict[str, float] = json.JSONDecoder().raw_decode(text)[0]  # rest of a longer earlier text may follow
    series = split(kept | dict(metrics))[1]
    return kept | {name: value for name, value in metrics.items() if name not in series}
