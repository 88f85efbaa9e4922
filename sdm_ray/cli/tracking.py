"""A training of its own in MLflow, linked to the sweep that its config came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
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

Steps = Generator[Progress, None, TrialResult]


@contextmanager
def tracked(settings: TrialSettings, folder: Path, uri: str | None) -> Iterator[Callable[[Steps], Steps]]:
    """Track a trial for the time of the block; gives what passes its steps on.

    Args:
        settings: the trial. Where its `origin` was tracked, the run becomes a child of the run that it came from.
        folder: of the trial; records wait there while the server is away.
        uri: tracking URI; None takes that of the origin, and tracks nothing where there is none; so does `none`.

    Raises:
        UsageError: for a `uri` that cannot work.
        RunError: when a server that was asked for does not answer. One that the config names is then left out, with a
            warning.
    """
    origin = settings.origin
    where = uri or (None if origin is None else origin.tracking_uri)
    if where is None or where == "none":
        yield lambda steps: steps
        return
    experiment = "sdm-ray" if origin is None else origin.experiment
    tracker = open_tracker(TrackingSettings(uri=where, experiment=experiment), folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tags = {"config_hash": content_hash(settings), "method": settings.train.method} | _origin_tags(origin, where)
        tracker.start_sweep(settings.name, settings.model_dump(mode="json"), tags)
    except (UsageError, RunError) as error:
        if uri is not None:
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


def _origin_tags(origin: Origin | None, uri: str) -> dict[str, Any]:
    """Links to the trial that a config came from; its run becomes the parent where it is in the same place."""
    from sdm_ray.tracking.runs import find_trial

    if origin is None or origin.sweep_id is None:
        return {}
    tags = {"origin.sweep": origin.sweep, "origin.sweep_id": origin.sweep_id, "origin.trial_id": origin.trial_id}
    found = find_trial(uri, origin.sweep_id, origin.trial_id) if uri == origin.tracking_uri else None
    return tags if found is None else tags | {"origin.run_id": found.run_id, "mlflow.parentRunId": found.run_id}


def _logged(steps: Steps, tracker: Tracker) -> Steps:
    """Pass a trial's steps on, and report each of them and the result to the tracker."""
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
