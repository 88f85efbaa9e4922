"""Label information at each site of a model, cached by content hash for references."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from sdm_ray.attack.findings.information import VERSION, Told, measure_information
from sdm_ray.config import digest
from sdm_ray.core.cache import ASKED, is_asked, look_up, offer
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import MALFORMED, read_json, write_json
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Task
from sdm_ray.trial.cached import built_once
from sdm_ray.trial.floors import Reference
from sdm_ray.trial.release import Release
from sdm_ray.trial.workspace import Workspace


def told_by(work: Workspace, model: Release | Reference, seed: int) -> Generator[Progress, None, tuple[Told, ...]]:
    """Measure the information at each site of a model; for references, use the cache."""
    if isinstance(model, Release):
        return measure_information(model.trunk, model.params, work.data, Task.HARMFUL, seed)
    reference = model
    key = digest([reference.digest, work.data.digest, seed, VERSION])

    def path(key: str) -> Path:
        return work.cache_dir / "information" / f"{key}.json"

    def build() -> Generator[Progress, None, tuple[Told, ...]]:
        yield from ()
        return measure_information(reference.trunk, reference.params, work.data, Task.HARMFUL, seed)

    def load(key: str) -> tuple[Told, ...] | None:
        return look_up(work.cache_dir, f"information/{key}", partial(_read, path(key), key), work.context.shared)

    def save(key: str, found: tuple[Told, ...]) -> None:
        write_json(path(key), {ASKED: key, "told": [asdict(told) for told in found]})

    found = yield from built_once({key: build}, load=load, save=save, path=path)
    offer(work.cache_dir, f"information/{key}", [path(key)], work.context.shared)
    return found[key]


def _read(path: Path, key: str) -> tuple[Told, ...] | None:
    """Cached entry; None if it is missing, damaged, or made from other inputs."""
    try:
        value = read_json(path) if path.exists() else None
        if isinstance(value, list):  # entry from before keys were stored in it
            value = {"told": value}
        return None if value is None or not is_asked(key, value.get(ASKED)) else tuple(Told(**t) for t in value["told"])
    except (RunError, *MALFORMED):
        return None
