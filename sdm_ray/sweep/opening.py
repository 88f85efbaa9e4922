"""Opens the Optuna study of a sweep: a new one, that of an earlier driver, or a lost one rebuilt from the ledger."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from sdm_ray.core.databases import damage_of, set_database_aside
from sdm_ray.core.notices import gathered
from sdm_ray.core.result import RESULT, Status, TrialResult, readable_result, write_result
from sdm_ray.sweep.records.warm import earlier_results
from sdm_ray.sweep.search.location import OWN_FILE, own_storage
from sdm_ray.sweep.search.makers import options_of_before, sampler_options
from sdm_ray.sweep.search.study import SearchStudy
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.tracking.address import at_home


def open_study(
    recorder: Recorder, folder: Path, announce: Callable[[str], None], inputs: Mapping[str, str] | None = None
) -> SearchStudy:
    """Open the study named in the ledger, or create one and record its name.

    Args:
        recorder: the sweep's state and ledger.
        folder: folder of `optuna.db`, unless `storage` is set.
        announce: shows a message about a warm start or a damaged study.
        inputs: digests of data and encoder, if known; those of a warm start must be equal.

    Raises:
        UsageError: if the storage cannot be used, or does not hold the study.
    """
    settings, name, file = recorder.state.settings, recorder.ledger.record.study_name, folder / OWN_FILE
    storage = own_storage(folder) if settings.storage is None else at_home(settings.storage, "storage")
    numbers = {entry.number: entry.params for entry in recorder.state.entries("search") if entry.number is not None}
    if name is None and numbers:  # lost with a damaged line of the ledger
        study = _create(recorder, storage, announce, inputs, warm=False)
        study.rebuild(numbers)
        return study
    if name is None:
        return _create(recorder, storage, announce, inputs)
    if settings.storage is None and (damage := study_damage(file, name, max(numbers, default=-1) + 1)) is not None:
        aside = set_database_aside(file)
        announce(f"{file.name} is damaged ({damage}): it lies in {aside.name} and is rebuilt from the ledger")
    is_lost = settings.storage is None and not file.exists()
    options = recorder.ledger.record.sampler_options
    if options is None:
        options = options_of_before(settings.search)
    study = SearchStudy.open(settings, storage=storage, name=name, create=is_lost, options=options)
    if is_lost:
        study.rebuild(numbers)
    return study


def study_damage(file: Path, name: str, num_trials: int) -> str | None:
    """Reason why an SQLite file cannot be the storage of a study with this number of trials; None if it can.

    A missing or locked file is not reported as damaged.
    """

    def look(database: sqlite3.Connection) -> str | None:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            return str(found)
        query = "SELECT count(*) FROM trials JOIN studies USING (study_id) WHERE study_name = ?"
        (count,) = database.execute(query, (name,)).fetchone()
        if count < num_trials:
            return f"it holds {count} of {num_trials} trials"
        if not database.execute("SELECT 1 FROM studies WHERE study_name = ?", (name,)).fetchone():
            return "it does not hold the study"
        return None

    return damage_of(file, look)


def restore_results(state: SweepState) -> list[str]:
    """Rewrite damaged `result.json` files of ended trials from the ledger; returns the ids of these trials.

    Raises:
        RunError: if a file cannot be read or written.
    """
    restored = []
    for entry in state.trials.values():
        if entry.result is None or entry.result.status is Status.FAILED:
            continue
        path = entry.result.output_dir / RESULT
        with gathered([]):  # suppress the notice that the trial will run again
            if path.exists() and readable_result(entry.result.output_dir) is None:
                write_result(entry.result)
                restored.append(entry.trial_id)
    return restored


def _create(
    recorder: Recorder,
    storage: str,
    announce: Callable[[str], None],
    inputs: Mapping[str, str] | None,
    *,
    warm: bool = True,
) -> SearchStudy:
    settings = recorder.state.settings
    name = f"{settings.name}-{uuid.uuid4().hex[:8]}"
    earlier = settings.search.warm_start if warm else None
    known = [] if earlier is None else list(earlier_results(settings, inputs))
    study = SearchStudy.open(settings, storage=storage, name=name, create=True)
    if earlier is not None:
        announce(f"warm start: {study.learn(known)} of {len(known)} points of {earlier} fit this space")
    recorder.name_study(name, sampler_options(settings.search))
    return study


def catch_up(state: SweepState, study: SearchStudy) -> list[TrialResult]:
    """Synchronise the study with the ledger after a driver died: fail points that were asked for but never began.

    Returns:
        Results of ended points that are not yet reported to Optuna.
    """
    points = {entry.number: entry.point for entry in state.entries("search") if entry.number is not None}
    study.reconcile(points)
    ended = (state.judgement.ended(points[number]) for number in sorted(study.pending() & points.keys()))
    return [result for result in ended if result is not None]
