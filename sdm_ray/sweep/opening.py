"""Opens the Optuna study of a sweep: a new one, that of an earlier driver, or a lost one rebuilt from the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from sdm_ray.core.result import TrialResult
from sdm_ray.sweep.records.warm import earlier_results
from sdm_ray.sweep.search.location import own_storage
from sdm_ray.sweep.search.makers import options_of_before, sampler_options
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.tracking.address import at_home


def open_study(
    recorder: Recorder, folder: Path, announce: Callable[[str], None], inputs: Mapping[str, str] | None = None
) -> SearchStudy:
    """Open the study that the ledger names, or create one and name it there.

    Args:
        recorder: the sweep.
        folder: where `optuna.db` lies unless `storage` is set.
        announce: shows a sentence about a warm start.
        inputs: digests of data and encoder, where they are known, which a warm start must share.

    Raises:
        UsageError: when the storage cannot be used, or does not hold the study.
    """
    settings, name, file = recorder.state.settings, recorder.ledger.record.study_name, folder / "optuna.db"
    storage = own_storage(folder) if settings.storage is None else at_home(settings.storage, "storage")
    if name is None:
        return _create(recorder, storage, announce, inputs)
    is_lost = settings.storage is None and not file.exists()
    options = recorder.ledger.record.sampler_options
    if options is None:
        options = options_of_before(settings.search)
    study = SearchStudy.open(settings, storage=storage, name=name, create=is_lost, options=options)
    if is_lost:
        entries = recorder.state.entries("search")
        study.rebuild({entry.number: entry.params for entry in entries if entry.number is not None})
    return study


def _create(
    recorder: Recorder, storage: str, announce: Callable[[str], None], inputs: Mapping[str, str] | None
) -> SearchStudy:
    settings = recorder.state.settings
    name = f"{settings.name}-{uuid.uuid4().hex[:8]}"
    earlier = settings.search.warm_start
    known = [] if earlier is None else list(earlier_results(settings, inputs))
    study = SearchStudy.open(settings, storage=storage, name=name, create=True)
    if earlier is not None:
        announce(f"warm start: {study.learn(known)} of {len(known)} points of {earlier} fit this space")
    recorder.name_study(name, sampler_options(settings.search))
    return study


def catch_up(state: SweepState, study: SearchStudy) -> list[TrialResult]:
    """Bring the study level with the ledger after a driver died: fail the points that it asked for and never began.

    Returns:
        Results of points that ended and that Optuna has not heard of.
    """
    points = {entry.number: entry.point for entry in state.entries("search") if entry.number is not None}
    study.reconcile(points)
    ended = (state.judgement.ended(points[number]) for number in sorted(study.pending() & points.keys()))
    return [result for result in ended if result is not None]
