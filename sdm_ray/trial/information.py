"""What each site of a release tells, beside a model without pretraining, whose part is kept on disk by content key."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from sdm_ray.attack.findings.information import VERSION, Site, Told, beside, measure_information
from sdm_ray.config import AttackSettings, digest
from sdm_ray.core.cache import look_up, offer
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import read_json, write_json
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Task
from sdm_ray.trial.cached import built_once
from sdm_ray.trial.floors import Reference
from sdm_ray.trial.release import Release
from sdm_ray.trial.workspace import Workspace


def sites_of(
    work: Workspace, model: Release | Reference, floor: Reference, settings: AttackSettings
) -> Generator[Progress, None, tuple[Site, ...] | None]:
    """The sites of a model, beside those of one that was never pretrained; None where they are not asked for."""
    if not settings.measure_information:
        return None
    told = yield from floor_sites(work, floor, settings.seed)
    if isinstance(model, Reference):
        mine = yield from floor_sites(work, model, settings.seed)
    else:
        mine = measure_information(model.trunk, model.params, work.data, Task.HARMFUL, settings.seed)
    return beside(mine, told)


def floor_sites(work: Workspace, floor: Reference, seed: int) -> Generator[Progress, None, tuple[Told, ...]]:
    """What a model tells that many trials are compared with, from the cache where it has been measured before."""
    key = digest([floor.digest, work.data.digest, seed, VERSION])

    def path(key: str) -> Path:
        return work.cache_dir / "information" / f"{key}.json"

    def build() -> Generator[Progress, None, tuple[Told, ...]]:
        yield from ()
        return measure_information(floor.trunk, floor.params, work.data, Task.HARMFUL, seed)

    def load(key: str) -> tuple[Told, ...] | None:
        return look_up(work.cache_dir, f"information/{key}", partial(_read, path(key)), work.context.shared)

    def save(key: str, found: tuple[Told, ...]) -> None:
        write_json(path(key), [asdict(told) for told in found])

    found = yield from built_once({key: build}, load=load, save=save, path=path)
    offer(work.cache_dir, f"information/{key}", [path(key)], work.context.shared)
    return found[key]


def _read(path: Path) -> tuple[Told, ...] | None:
    """What is kept; None where there is none, or it is damaged."""
    try:
        return tuple(Told(**told) for told in read_json(path)) if path.exists() else None
    except (RunError, ValueError, TypeError, KeyError):
        return None
