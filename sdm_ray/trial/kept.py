"""Cache of trainings that several trials share: tensors and JSON values in a file, by content hash of the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdm_ray.core.cache import ASKED, is_asked, look_up, offer
from sdm_ray.core.files import atomic_path
from sdm_ray.core.progress import Progress
from sdm_ray.trial.cached import built_once
from sdm_ray.trial.workspace import Workspace

T = TypeVar("T")


class Kept(NamedTuple):
    """Contents of a file."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """JSON values."""


def trained_once(
    work: Workspace,
    kind: str,
    key: str,
    train: Callable[[], Generator[Progress, None, T]],
    *,
    pack: Callable[[T], Kept],
    unpack: Callable[[Kept], T],
) -> Generator[Progress, None, T]:
    """Return the cached result of a training, or train and cache it.

    Args:
        work: workspace with the cache and the device for tensors.
        kind: folder in the cache.
        key: content hash of all inputs of the training.
        train: runs the training.
        pack: converts its result to the contents of a file.
        unpack: inverse of `pack`; KeyError and ValueError mean that the file is invalid.
    """

    def path(key: str) -> Path:
        return work.cache_dir / kind / f"{key}.safetensors"

    def read(key: str) -> T | None:
        kept = _read(path(key), key, str(work.device))
        try:
            return None if kept is None else unpack(kept)
        except (KeyError, ValueError):
            return None

    def load(key: str) -> T | None:
        return look_up(work.cache_dir, f"{kind}/{key}", partial(read, key), work.context.shared)

    def save(key: str, found: T) -> None:
        _write(path(key), key, pack(found))
        offer(work.cache_dir, f"{kind}/{key}", [path(key)], work.context.shared)

    found = yield from built_once({key: train}, load=load, save=save, path=path)
    return found[key]


def _write(path: Path, key: str, kept: Kept) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in kept.tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"sdm_ray": json.dumps(kept.facts), ASKED: key})


def _read(path: Path, key: str, device: str) -> Kept | None:
    """Contents of a file; None if it is missing, damaged, or made from other inputs."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            if not is_asked(key, metadata.get(ASKED)):
                return None
            facts = json.loads(metadata["sdm_ray"])
            return Kept({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
