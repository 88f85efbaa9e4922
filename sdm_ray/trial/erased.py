"""The erasure that a training starts from, found once for all trials that share encoder, data, settings and seed."""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sdm_ray.config import TrialSettings, digest
from sdm_ray.core.cache import ASKED, is_asked, look_up, offer
from sdm_ray.core.files import atomic_path, write_json
from sdm_ray.core.progress import Progress
from sdm_ray.meta.outer.erase import FoundErasure, Removed, check_erasure, find_erasure
from sdm_ray.meta.validation import split_meta_train
from sdm_ray.models.encoder import Trunk
from sdm_ray.models.erasure import Erasure
from sdm_ray.models.stream import stream_of
from sdm_ray.trial.cached import built_once
from sdm_ray.trial.workspace import Workspace

REPORT = "erasure.json"
FORMAT_VERSION = 1
"""Raise it when the same settings would give other directions."""


def found_erasure(
    work: Workspace, settings: TrialSettings, trunk: Trunk
) -> Generator[Progress, None, FoundErasure | None]:
    """What a trial erases, found or read from the cache; None where it erases nothing.

    Args:
        work: data and device.
        settings: the trial.
        trunk: the public encoder.

    Raises:
        UsageError: for an encoder or data that it cannot be done to.
    """
    erase = settings.train.erase
    if not erase.num_directions:
        return None
    check_erasure(erase, trunk)
    indices, _ = split_meta_train(work.data, settings.train)
    asked = [FORMAT_VERSION, trunk.digest(), work.data.digest, erase.identity(), indices.tolist(), settings.seed]
    key = digest(asked)

    def path(key: str) -> Path:
        return work.cache_dir / "erasure" / f"{key}.safetensors"

    def load(key: str) -> FoundErasure | None:
        return look_up(work.cache_dir, f"erasure/{key}", partial(_read, path(key), key, trunk, work), shared)

    def save(key: str, found: FoundErasure) -> None:
        _write(path(key), key, found)
        offer(work.cache_dir, f"erasure/{key}", [path(key)], shared)

    shared = work.context.shared
    build = partial(find_erasure, erase, trunk=trunk, data=work.data, indices=indices, seed=settings.seed)
    found = yield from built_once({key: build}, load=load, save=save, path=path)
    return found[key]


def write_erasure(found: FoundErasure, path: Path) -> None:
    """Write how an erasure was found: `seconds`, and of each direction the hidden state that it was found in and what
    each site's reader told on held-out names before (`accuracies`).

    Raises:
        RunError: when the file cannot be written.
    """
    write_json(path, _facts(found))


def _facts(found: FoundErasure) -> dict[str, Any]:
    return {"removed": [removed._asdict() for removed in found.removed], "seconds": found.seconds}


def _write(path: Path, key: str, found: FoundErasure) -> None:
    tensors = {name: value.cpu().contiguous() for name, value in found.erasure.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"sdm_ray": json.dumps(_facts(found)), ASKED: key})


def _read(path: Path, key: str, trunk: Trunk, work: Workspace) -> FoundErasure | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device=str(work.device)) as file:
            metadata = file.metadata() or {}
            if not is_asked(key, metadata.get(ASKED)):
                return None
            facts = json.loads(metadata["sdm_ray"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        removed = tuple(Removed(one["state"], tuple(one["accuracies"])) for one in facts["removed"])
        erasure = Erasure.from_state(stream_of(trunk), tensors)
        return FoundErasure(erasure=erasure, removed=removed, seconds=facts["seconds"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
