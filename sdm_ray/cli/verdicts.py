"""Output about one model: its figures, the verdict, and the names of failed audit checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.markup import escape

from sdm_ray.cli.progress import console
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import FINAL
from sdm_ray.core.verdict import says
from sdm_ray.frontier.points import interval_of
from sdm_ray.sweep.records.folder import find_sweep
from sdm_ray.sweep.records.points import trial_result
from sdm_ray.tracking.address import is_reference

FIGURES = {Metric.DESIRED_ACCURACY: "desired accuracy", Metric.HARMFUL_WORST_ACCURACY: "worst-case harmful accuracy"}


def say_point(
    metrics: Mapping[str, float], failed: Iterable[str] = (), figures: Mapping[str, float] | None = None
) -> None:
    """Print the figures of a model and its verdict.

    Args:
        metrics: metrics of the model.
        failed: names of the audit's failed checks.
        figures: values to print before the verdict, by label; None takes `FIGURES`.
    """
    for line in point_lines(metrics, failed, figures):
        console.print(escape(line), soft_wrap=True)


def point_lines(
    metrics: Mapping[str, float], failed: Iterable[str] = (), figures: Mapping[str, float] | None = None
) -> list[str]:
    """Lines that `say_point` prints."""
    named = {words: metrics[name] for name, words in FIGURES.items() if name in metrics} if figures is None else figures
    ends = {words: interval_of(metrics, name) for name, words in FIGURES.items()} if figures is None else {}
    parts = []
    for words, value in named.items():
        interval = ends.get(words)
        parts.append(f"{words} {value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""))
    verdict = says(metrics, failed)
    if verdict is None and metrics.get(Metric.AUDIT_PASSED) == 0.0:
        checks = ", ".join(name.replace("_", " ") for name in failed)
        verdict = "the audit failed" + (f": {checks}" if checks else "")
    return [*([", ".join(parts)] if parts else []), *([f"verdict {verdict}"] if verdict else [])]


def failed_checks(sweep: str | Path, trial_id: str, uri: str | None = None) -> list[str]:
    """Names of the audit checks that a sweep's trial failed, in its final attack if there was one.

    Args:
        sweep: name or folder of the sweep, or `mlflow:RUN_ID` of a run of it.
        trial_id: the trial.
        uri: of MLflow; see `sdm_ray.tracking.runs.find_run`.
    """
    if is_reference(str(sweep)):
        from sdm_ray.sweep.records.tracked import tracked_checks

        return tracked_checks(str(sweep), trial_id, uri=uri)
    folder = find_sweep(sweep)
    for name in (f"{trial_id}{FINAL}", trial_id):
        result = trial_result(folder, name)
        if result is not None:
            return list(result.failed_checks)
    return []
