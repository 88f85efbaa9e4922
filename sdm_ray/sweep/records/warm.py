"""Warm start: results of an earlier sweep for the sampler of a new one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdm_ray.config import SweepSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.result import Status
from sdm_ray.sweep.records.folder import begun_settings, differences, find_sweep
from sdm_ray.sweep.search.location import SETTINGS, sweep_folder
from sdm_ray.sweep.state.inputs import inputs_problem
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.sweep.state.state import SweepState

SAME = ("trial.", "objectives", "search.num_seeds")
"""Settings that must be equal for the results of two sweeps to be comparable; paths ending in a dot are sections."""
FREE = ("trial.runtime", "trial.name")
"""Exceptions from `SAME`, which may differ."""


def earlier_results(
    settings: SweepSettings,
    inputs: Mapping[str, str] | None = None,
) -> Iterator[tuple[Mapping[str, Any], Sequence[float], Mapping[str, float]]]:
    """Yield (params, objectives, violations) of the completed points of the sweep `search.warm_start`.

    Args:
        settings: the new sweep.
        inputs: digests of its data and encoder, if known.

    Raises:
        UsageError: if the earlier sweep does not exist, or its results are not comparable.
        RunError: if the earlier ledger cannot be read; damaged lines are skipped.
    """
    assert settings.search.warm_start is not None
    folder = find_sweep(settings.search.warm_start, output_dir=settings.output_dir)
    if folder.resolve() == sweep_folder(settings).resolve():
        raise UsageError("search.warm_start names this sweep itself; --resume goes on with it")
    earlier = begun_settings(folder)
    _check_same(earlier, settings)
    state = SweepState(earlier, read_record(folder, around=True))
    problem = inputs_problem(state.trials.values(), inputs or {})
    if problem is not None:
        raise UsageError(
            f"search.warm_start: the results of {earlier.name!r} mean something else here ({problem}); restore what "
            "was there, or name its best settings under search.points"
        )
    for entry in state.entries("search"):
        ended = state.judgement.ended(entry.point) if entry.seed_index == 0 else None
        if ended is not None and ended.status is Status.COMPLETE:
            values = [ended.metrics[objective.metric] for objective in settings.objectives]
            yield entry.params, values, state.judgement.violations(ended)


def _check_same(earlier: SweepSettings, settings: SweepSettings) -> None:
    searched = earlier.space.keys() | settings.space.keys()
    changed = [
        text
        for path, text in differences(earlier, settings).items()
        if path.startswith(SAME) and not path.startswith(FREE) and path.removeprefix("trial.") not in searched
    ]
    if changed:
        raise UsageError(
            f"search.warm_start: the results of {earlier.name!r} mean something else here ({'; '.join(changed)}); "
            "make that equal, or name its best settings under search.points"
        )


def forked(settings: SweepSettings, inputs: Mapping[str, str] | None = None) -> tuple[SweepSettings, str]:
    """Settings for a new sweep that warm-starts from the sweep in the folder of `settings`, and a message about it.

    If the earlier results are not comparable, the new sweep starts without them. `inputs` as in `earlier_results`.

    Raises:
        UsageError: if there is no sweep to fork.
    """
    parent = sweep_folder(settings).parent
    if not (parent / settings.name / SETTINGS).is_file():
        raise UsageError(f"{parent / settings.name} holds no sweep to fork; leave --fork out to start it")
    taken = {path.name for path in parent.iterdir()}
    name = next(name for index in itertools.count(2) if (name := f"{settings.name}-{index}") not in taken)
    search = settings.search.model_copy(update={"warm_start": settings.name})
    fork = settings.model_copy(update={"name": name, "search": search})
    try:
        num_known = len(list(earlier_results(fork, inputs)))
    except UsageError as error:
        plain = settings.model_copy(update={"name": name})
        return plain, f"fork: sweep {name} starts afresh, because {str(error).removeprefix('search.warm_start: ')}"
    return fork, f"fork: sweep {name} starts from the {num_known} points that {settings.name} completed"
