"""Tracks a single training in MLflow, linked to the sweep that its config came from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from sdm_ray.cli.progress import console, error_console
from sdm_ray.config import Origin, TrackingSettings, TrialSettings, content_hash
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import TrialResult
from sdm_ray.tracking import Tracker, open_tracker
from sdm_ray.tracking.outbox import SWEEP_RUN
from sdm_ray.tracking.place import DEFAULT_EXPERIMENT, EXPERIMENT, URI, Place, context_tags, without_password

Steps = Generator[Progress, None, TrialResult]
FROM_ORIGIN = "that of the config's sweep"


@contextmanager
def tracked(settings: TrialSettings, folder: Path, uri: str | None) -> Iterator[Callable[[Steps], Steps]]:
    """Track a trial during the block; yields a function that forwards its steps.

    Args:
        settings: the trial. If its `origin` was tracked, the run becomes a child of that run.
        folder: the trial's folder; records wait there while the server is unreachable.
        uri: tracking URI; None takes `$MLFLOW_TRACKING_URI`, or else that of the origin. Without either, and for
            `none`, nothing is tracked.

    Raises:
        UsageError: for an invalid `uri`.
        RunError: when a requested server does not answer. If only the config names it, tracking is skipped with a
            warning.
    """
    origin = settings.origin
    place = training_place(origin, uri)
    if place is None:
        yield lambda steps: steps
        return
    error_console.print(escape(str(place)), soft_wrap=True)
    tracker = open_tracker(place.apply(TrackingSettings()), folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tags = {"config_hash": content_hash(settings), "method": settings.train.method} | _origin_tags(
            origin, place.uri
        )
        tracker.start_sweep(settings.name, settings.model_dump(mode="json"), tags)
    except (UsageError, RunError) as error:
        if place.uri_from != FROM_ORIGIN:
            raise
        error_console.print(f"not tracked: {error}; --tracking-uri names another place", markup=False, soft_wrap=True)
        yield lambda steps: steps
        return
    status = "failed"
    try:
        yield lambda steps: _logged(steps, tracker)
        status = "complete"
    except KeyboardInterrupt:
        status = "stopped"
        raise
    finally:
        tracker.finish_sweep(status)
    console.print(f"tracked {escape(tracker.ui_hint())}", soft_wrap=True)


def training_place(origin: Origin | None, uri: str | None, environ: Mapping[str, str] = os.environ) -> Place | None:
    """Where a training is tracked: the requested place, `MLFLOW_TRACKING_URI`, or that of the trial it comes from.

    Args:
        origin: origin of the config.
        uri: the option; `none` tracks nothing.
        environ: the environment.

    Raises:
        UsageError: when a variable cannot be read.
    """
    kept = (None, None) if origin is None else (origin.tracking_uri, origin.experiment)
    places = ((uri, "--tracking-uri"), (environ.get(URI), URI), (kept[0], FROM_ORIGIN))
    names = ((environ.get(EXPERIMENT), EXPERIMENT), (kept[1], FROM_ORIGIN), (DEFAULT_EXPERIMENT, "the default"))
    where, uri_from = next(((value, source) for value, source in places if value), ("none", ""))
    if where == "none":
        return None
    name, experiment_from = next((value, source) for value, source in names if value)
    tags = context_tags(environ)
    return Place(uri=where, uri_from=uri_from, experiment=name, experiment_from=experiment_from, tags=tags)


def _origin_tags(origin: Origin | None, uri: str) -> dict[str, Any]:
    """Tags that link to the trial a config came from; its run becomes the parent if it is in the same place."""
    from sdm_ray.tracking.runs import find_trial

    if origin is None or origin.sweep_id is None:
        return {}
    tags = {"origin.sweep": origin.sweep, "origin.sweep_id": origin.sweep_id, "origin.trial_id": origin.trial_id}
    found = find_trial(uri, origin.sweep_id, origin.trial_id) if without_password(uri) == origin.tracking_uri else None
    return tags if found is None else tags | {"origin.run_id": found.run_id, "mlflow.parentRunId": found.run_id}


def _logged(steps: Steps, tracker: Tracker) -> Steps:
    """Yield a trial's steps, and report each step and the result to the tracker."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as stop:
            result: TrialResult = stop.value
            tracker.finish_trial(dataclasses.replace(result, trial_id=SWEEP_RUN))
            return result
        measured = {name: value for name, value in progress.metrics.items() if name != Metric.TRAIN_STEP}
        if measured:
            tracker.log(SWEEP_RUN, measured, progress.done)
        yield progress
