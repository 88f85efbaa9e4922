"""Reads the settings of one point of a sweep, so that it can be trained again."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from sdm_ray.config import Origin, SweepSettings, TrialSettings, load_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.frontier.select import Rule, refuse_scratch, rule_of, select
from sdm_ray.sweep.records.folder import find_sweep
from sdm_ray.sweep.records.points import sweep_points
from sdm_ray.tracking.address import is_reference, sweep_id_file
from sdm_ray.tracking.place import choose_place, without_password


def load_best(
    sweep: str | Path,
    *,
    rule: Rule | None = None,
    min_desired: float | None = None,
    desired_weight: float | None = None,
    trial_id: str | None = None,
    output_dir: str | Path = "runs",
    tracking_uri: str | None = None,
) -> TrialSettings:
    """Load the settings of one point of a sweep, with their source in `origin`.

    Args:
        sweep: a sweep's folder, or its name in `output_dir`; or `mlflow:RUN_ID` of a trial.
        rule: see `sdm_ray.frontier.select.select`. None chooses the rule that uses the given `min_desired`,
            `desired_weight` or `trial_id`, and `constrained` if none of them is given.
        min_desired: minimum desired accuracy, for `constrained`.
        desired_weight: weight of the desired accuracy, for `weighted`; None is 0.5.
        trial_id: id of the trial, for `trial`.
        output_dir: parent folder of sweeps.
        tracking_uri: MLflow server for a run; see `sdm_ray.tracking.runs.find_run`.

    Raises:
        UsageError: if the sweep does not exist, no point qualifies, or the rule does not use a given argument.
        RunError: if neither the sweep's table nor its ledger can be read.
    """
    given = {"min_desired": min_desired, "desired_weight": desired_weight, "trial_id": trial_id}
    if is_reference(str(sweep)):
        if rule is not None or any(value is not None for value in given.values()):
            raise UsageError(f"{sweep} is one trial already: a rule, a bound, a weight or a trial picks from a sweep")
        return _of_run(str(sweep), output_dir, tracking_uri)
    rule = rule_of(rule, min_desired=min_desired, desired_weight=desired_weight, trial_id=trial_id)
    folder = find_sweep(sweep, output_dir=output_dir)
    weight = 0.5 if desired_weight is None else desired_weight
    point = select(sweep_points(folder), rule=rule, min_desired=min_desired, desired_weight=weight, trial_id=trial_id)
    settings = load_settings(TrialSettings, folder / "trials" / point.trial_id / "config.yaml")
    label = rule if min_desired is None else f"{rule}, desired >= {min_desired:g}"
    metrics = {name: value for name, value in point.metrics.items() if math.isfinite(value)}
    origin = Origin(sweep=folder.name, trial_id=point.trial_id, rule=label, metrics=metrics, **_where_tracked(folder))
    return settings.model_copy(update={"name": f"{folder.name}-{point.trial_id}", "origin": origin})


def _of_run(reference: str, output_dir: str | Path, tracking_uri: str | None) -> TrialSettings:
    """Settings of a tracked trial, from its MLflow run only."""
    from sdm_ray.tracking.artifacts import download
    from sdm_ray.tracking.runs import find_run

    run = find_run(reference, uri=tracking_uri, output_dir=output_dir)
    refuse_scratch(f"run {run.run_id} ({run.name})", run.metrics)
    with tempfile.TemporaryDirectory(prefix="sdm-ray-") as folder:
        file = None if run.is_sweep else download(run, "config.yaml", Path(folder))
        if file is None:
            raise UsageError(
                f"run {run.run_id} ({run.name}) has no config.yaml; name the run of a trial that has ended"
            )
        settings = load_settings(TrialSettings, file)
    origin = Origin(
        sweep=settings.name.partition("/")[0], trial_id=run.trial_id, rule="run id", metrics=dict(run.metrics),
        sweep_id=run.sweep_id, tracking_uri=without_password(run.uri),
    )  # fmt: skip
    return settings.model_copy(update={"name": f"{origin.sweep}-{run.trial_id}", "origin": origin})


def _where_tracked(folder: Path) -> dict[str, str]:
    """MLflow location of a sweep, as fields of `Origin`; empty if the sweep was not tracked."""
    mark = sweep_id_file(folder)
    if not mark.is_file():
        return {}
    tracking = load_settings(SweepSettings, folder / "sweep.yaml").tracking
    place = choose_place(tracking, folder)
    return {
        "sweep_id": mark.read_text().strip(),
        "tracking_uri": without_password(place.uri),
        "experiment": place.experiment,
    }
