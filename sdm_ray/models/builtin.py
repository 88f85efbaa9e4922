"""Built-in encoder: the shipped folder, or one that is pretrained once and cached by content hash."""

from __future__ import annotations

import json
import logging
import os
import uuid
from pathlib import Path

from sdm_ray.config.data import SyntheticWorld
from sdm_ray.core.cache import SharedCache, look_up, offer
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import move, remove, replace_folder
from sdm_ray.models.pretrain import RECORD_FILE, SHIPPED_FOLDERS, pretrain_builtin, pretraining_record
from sdm_ray.models.pretrain_settings import PretrainSettings, default_settings

logger = logging.getLogger(__name__)


def builtin_folder(
    world: SyntheticWorld | None = None,
    *,
    cache_dir: Path,
    settings: PretrainSettings | None = None,
    shared: SharedCache | None = None,
) -> Path:
    """Folder of the built-in encoder of a world, in Hugging Face's layout.

    Args:
        world: the synthetic world; defaults to `SyntheticWorld()`. The encoders of each version's default world are
            shipped.
        cache_dir: cache of the encoders of other worlds, by content hash. A missing one is pretrained there (minutes by
            default) and moved into place atomically, for concurrent callers.
        settings: shape and training of the encoder.
        shared: cache entries shared between machines.

    Returns:
        A folder with `config.json`, `model.safetensors`, tokenizer files and `sdm_ray_pretraining.json`.

    Raises:
        RunError: if `cache_dir` cannot be written.
    """
    world = world or SyntheticWorld()
    settings = settings or default_settings(world)
    wanted = pretraining_record(world, settings)["content_hash"]
    shipped = SHIPPED_FOLDERS[world.version]
    if recorded_hash(shipped) == wanted:
        return shipped
    folder = cache_dir / f"builtin-{wanted}"
    if look_up(cache_dir, folder.name, lambda: recorded_hash(folder) == wanted or None, shared) is None:
        _build(world, settings, folder, wanted)
    files = sorted(folder.iterdir(), key=lambda path: path.name == RECORD_FILE)
    offer(cache_dir, folder.name, files, shared)
    return folder


def _build(world: SyntheticWorld, settings: PretrainSettings, folder: Path, wanted: str) -> None:
    """Pretrain an encoder and move it into place."""
    minutes = "two" if world.version == 1 else "six"
    logger.warning(
        "pretraining the built-in encoder of this synthetic world into %s (about %s minutes)", folder, minutes
    )
    building = folder.parent / f".{folder.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        pretrain_builtin(world, building, settings)
        _move_into_place(building, folder, wanted)
    except OSError as error:
        raise RunError(
            f"cannot write the built-in encoder to {folder}: {error.strerror or error}; free space or choose another "
            "cache folder"
        ) from error
    finally:
        remove(building)


def recorded_hash(folder: Path) -> str | None:
    """Content hash of the encoder in `folder`; None if the folder holds no complete one."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = record.get("content_hash") if isinstance(record, dict) else None
    return value if isinstance(value, str) else None


def _move_into_place(building: Path, folder: Path, wanted: str) -> None:
    """Rename the folder; if another process finished first, keep its folder; replace a damaged one."""
    try:
        move(building, folder)
    except OSError:
        if recorded_hash(folder) == wanted:
            return
        replace_folder(building, folder)
