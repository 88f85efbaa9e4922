"""What each site of a release tells, beside a model without pretraining, whose part is kept on disk by content key."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from sdm_ray.attack.findings.information import VERSION, Site, Told, beside, measure_information
from sdm_ray.config import AttackSettings, digest
from sdm_ray.core.cache import look_up, offer
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import read_json, write_json
from sdm_ray.core.types import Task
from sdm_ray.trial.floors import Reference
from sdm_ray.trial.release import Release
from sdm_ray.trial.workspace import Workspace


def sites_of(work: Workspace, release: Release, floor: Reference, settings: AttackSettings) -> tuple[Site, ...] | None:
    """The sites of a release, beside those of a model that was never pretrained; None where they are not asked for."""
    if not settings.measure_information:
        return None
    mine = measure_information(release.trunk, release.params, work.data, Task.HARMFUL, settings.seed)
    return beside(mine, _floor(work, floor, settings.seed))


def _floor(work: Workspace, floor: Reference, seed: int) -> tuple[Told, ...]:
    """What the floor tells, from the cache where it has been measured before."""
    key = digest([floor.digest, work.data.digest, seed, VERSION])
    path = work.cache_dir / "information" / f"{key}.json"
    entry, shared = f"information/{key}", work.context.shared
    found = look_up(work.cache_dir, entry, partial(_read, path), shared)
    if found is None:
        found = measure_information(floor.trunk, floor.params, work.data, Task.HARMFUL, seed)
        write_json(path, [asdict(told) for told in found])
    offer(work.cache_dir, entry, [path], shared)
    return found


def _read(path: Path) -> tuple[Told, ...] | None:
    """What is kept; None where there is none, or it is damaged."""
    try:
        return tuple(Told(**told) for told in read_json(path)) if path.exists() else None
    except (RunError, ValueError, TypeError, KeyError):
        return None
