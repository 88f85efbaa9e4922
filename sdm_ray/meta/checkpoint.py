"""Checkpoints: a folder with one safetensors file and one JSON file, written atomically.

A checkpoint is written to a temporary folder, synced to the disk and renamed; the previous one is removed only after
that. A crash at any time therefore leaves a good checkpoint. A checkpoint holds data only, no pickled code.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import MALFORMED, move, reason, remove, set_aside, sync_path, write_bytes
from sdm_ray.core.notices import notice

FORMAT = 3
_PREFIX = "step-"
_TENSOR = "tensor:"
"""Prefix of a string in the JSON file that refers to a tensor in the safetensors file."""


def save_checkpoint(folder: Path, step: int, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the checkpoint of a step and remove older ones.

    Args:
        folder: folder with the checkpoints of one run.
        step: number of outer steps done.
        identity: JSON that identifies the run; `load_checkpoint` compares it.
        state: nested dictionaries (string keys), lists, tensors and JSON scalars.

    Raises:
        RunError: if the folder cannot be written or the disk is full; the last good checkpoint is kept.
    """
    tensors: dict[str, Tensor] = {}
    document = {"format": FORMAT, "step": step, "identity": identity, "state": _separate(state, "", tensors)}
    temporary = folder / f".{_PREFIX}{step:09d}.partial"
    final = folder / f"{_PREFIX}{step:09d}"
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        content = save_tensors(tensors)
        document["checksum"] = zlib.crc32(content)
        write_bytes(temporary / "tensors.safetensors", content, sync=True)
        write_bytes(temporary / "state.json", json.dumps(document, allow_nan=False).encode(), sync=True)
        if final.exists():
            remove(final)
        move(temporary, final)
        sync_path(folder)
    except OSError as error:
        remove(temporary)
        raise RunError(
            f"cannot write the checkpoint of step {step} to {folder}: {error.strerror or error}; "
            "free space or choose another folder, then run the same command again"
        ) from error
    for other in _found(folder):
        if other != final:
            remove(other)


def load_checkpoint(folder: Path, identity: dict[str, Any], device: torch.device) -> tuple[int, dict[str, Any]] | None:
    """Load a run's last readable checkpoint.

    A damaged checkpoint is moved aside with a notice; the run then continues from the previous one, or restarts.

    Args:
        folder: folder with the checkpoints of one run.
        identity: JSON that identifies the run.
        device: device for the tensors that were not on the CPU when they were saved.

    Returns:
        Step and state, or None if there is no checkpoint.

    Raises:
        UsageError: if the checkpoint belongs to another run or has another format.
        RunError: if a file cannot be read, or a damaged checkpoint cannot be moved.
    """
    for path in reversed(_found(folder)):
        try:
            return _load(path, identity, device)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise RunError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
            damage = f"{Path(error.filename).name} is missing"
        except UsageError:
            raise
        except (SafetensorError, *MALFORMED) as error:
            damage = reason(error)
        aside = set_aside(path)
        before = "from the checkpoint before" if _found(folder) else "from its beginning"
        notice(f"checkpoint {path.name} is damaged ({damage}): training goes on {before}; it lies in {aside.name}")
    return None


def _load(path: Path, identity: dict[str, Any], device: torch.device) -> tuple[int, dict[str, Any]]:
    document = json.loads((path / "state.json").read_text(encoding="utf-8"))
    _check_identity(path, document, identity)
    content = (path / "tensors.safetensors").read_bytes()
    if document.get("checksum", zlib.crc32(content)) != zlib.crc32(content):  # older ones have none
        raise ValueError("tensors.safetensors has another checksum")
    return int(document["step"]), _join(document["state"], load_tensors(content), device)


def _check_identity(path: Path, document: dict[str, Any], identity: dict[str, Any]) -> None:
    remedy = "choose another output folder, or remove the checkpoint to train from the start"
    if document["format"] != FORMAT:
        raise UsageError(f"checkpoint {path} has format {document['format']}, this version reads {FORMAT}; {remedy}")
    difference = _first_difference(document["identity"], json.loads(json.dumps(identity)))
    if difference is not None:
        name, theirs, ours = difference
        raise UsageError(
            f"checkpoint {path} belongs to another run: {name} was {_short(theirs)}, now it is {_short(ours)}; {remedy}"
        )


def _first_difference(theirs: Any, ours: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            found = _first_difference(theirs.get(key), ours.get(key), f"{path}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if theirs == ours else (path, theirs, ours)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and not path.suffix)


def _separate(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return f"{_TENSOR}{value.device.type}:{path}"
    if isinstance(value, dict):
        return {key: _separate(item, f"{path}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_separate(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    assert value is None or isinstance(value, (bool, int, float, str)), (path, type(value))
    return value


def _join(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        kind, path = value.removeprefix(_TENSOR).split(":", 1)
        return tensors[path] if kind == "cpu" else tensors[path].to(device)
    if isinstance(value, dict):
        return {key: _join(item, tensors, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, tensors, device) for item in value]
    return value
