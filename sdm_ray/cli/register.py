"""`sdm-ray register`."""

from __future__ import annotations

from rich.markup import escape

from sdm_ray.cli.foreign import check_address
from sdm_ray.cli.progress import console
from sdm_ray.cli.verdicts import failed_checks, say_point
from sdm_ray.config import SweepSettings, load_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.sweep.records.best import load_best
from sdm_ray.sweep.records.folder import find_sweep
from sdm_ray.tracking.address import is_reference
from sdm_ray.tracking.registry import register
from sdm_ray.tracking.runs import TrackedRun, find_run, run_of_trial


def run(
    source: str,
    name: str,
    *,
    min_desired: float | None,
    trial: str | None,
    alias: str,
    promote: bool,
    force: bool,
    uri: str | None,
) -> None:
    """Register a trial's model and print how to load it."""
    taken = _run(source, min_desired, trial, uri)
    made = register(taken, name, alias=alias, promote=promote, force=force)
    words = f"version {made.version} of {name}"
    if made.alias is not None:
        words += f", {made.alias}" + (f" in place of version {made.replaced}" if made.replaced else "")
    console.print(escape(words), soft_wrap=True)
    say_point(taken.metrics, failed_checks(source, taken.trial_id, uri))
    console.print(f"load    mlflow.transformers.load_model({escape(repr(made.uri))})", soft_wrap=True)


def _run(source: str, min_desired: float | None, trial: str | None, uri: str | None) -> TrackedRun:
    if is_reference(source):
        if trial is not None or min_desired is not None:
            raise UsageError("--trial and --min-desired pick from a sweep, and mlflow:RUN_ID is one trial already")
        return find_run(source, uri=uri)
    if trial is not None and min_desired is not None:
        raise UsageError("--min-desired picks the best of a sweep, and --trial names a trial: give one of them")
    folder = find_sweep(source)
    if trial is None:
        origin = load_best(folder, min_desired=min_desired).origin
        assert origin is not None
        trial = origin.trial_id
    tracking = load_settings(SweepSettings, folder / "sweep.yaml").tracking
    if uri is None:
        check_address(folder, tracking.uri)
    return run_of_trial(folder, trial, uri=uri or tracking.uri)
