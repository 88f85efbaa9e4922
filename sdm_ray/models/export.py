"""Export of a trained model to a Hugging Face folder, and loading.

With `native` pooling the folder is a complete `ForSequenceClassification`. No such class exists for other poolings: the
folder then holds the trunk and `head.safetensors`. Weights are only stored as safetensors.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdm_ray.config import TrialSettings, content_hash, parse_settings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import (
    MALFORMED,
    atomic_path,
    nan_for_null,
    null_for_nan,
    read_json,
    remove,
    replace_folder,
    write_json,
    write_text,
)
from sdm_ray.core.types import Params
from sdm_ray.models.encoder import load_trunk
from sdm_ray.models.hub import quiet
from sdm_ray.models.model_card import model_card
from sdm_ray.models.native import native_pooling
from sdm_ray.models.trunk import Trunk

FORMAT = 1
"""Version of `sdm_ray.json`."""
META, HEAD, WEIGHTS = "sdm_ray.json", "head.safetensors", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportMeta:
    """Contents of an exported model's `sdm_ray.json`."""

    settings: TrialSettings
    """Settings of the trial that made it, with default `runtime`."""
    config_hash: str
    label_names: tuple[str, ...]
    """Classes of the desired task, in the order of the head's rows."""
    metrics: dict[str, float]
    versions: dict[str, str]


class Exported(NamedTuple):
    """A loaded model."""

    trunk: Trunk
    params: Params
    """Parameters of the trunk, detached; they share its memory."""
    head: Tensor | None
    """(C, D) desired head; None for a Hugging Face folder that sdm-ray did not write."""
    meta: ExportMeta | None
    """None for a Hugging Face folder that sdm-ray did not write."""


def export_model(
    folder: Path,
    *,
    trunk: Trunk,
    params: Params,
    desired_head: Tensor,
    tokenizer: Any,
    label_names: Sequence[str],
    settings: TrialSettings,
    metrics: Mapping[str, float],
    failed_checks: Sequence[str] = (),
) -> Path:
    """Write a model folder atomically: readers see the old folder or the complete new one.

    Args:
        folder: target; replaced if it holds an earlier export, rejected if it holds anything else.
        trunk: the architecture.
        params: released weights.
        desired_head: (C, D) head of the desired task.
        tokenizer: the encoder's tokenizer.
        label_names: names of the C classes.
        settings: the trial.
        metrics: measurements by name.
        failed_checks: names of the audit's failed checks.

    Returns:
        `folder`.

    Raises:
        UsageError: if `folder` is in use, or names and head disagree.
        RunError: if it cannot be written.
    """
    if len(label_names) != desired_head.shape[0]:
        raise UsageError(f"the desired head has {desired_head.shape[0]} classes, {len(label_names)} names are given")
    if settings.encoder.pooling == "auto":
        settings = settings.model_copy(
            update={"encoder": settings.encoder.model_copy(update={"pooling": trunk.pooling})}
        )
    if folder.exists() and not (folder / META).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is no exported model; choose another folder or remove it")
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        _write(temporary, trunk, params, desired_head, tokenizer, label_names)
        _describe(temporary, trunk, label_names, settings, metrics, failed_checks)
        temporary.chmod(0o755)
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write the model to {folder}: {reason}; free space or choose another folder") from error
    finally:
        if temporary is not None:
            remove(temporary)
    return folder


def export_weights(folder: Path, params: Params, desired_head: Tensor) -> Path:
    """Write weights to `weights.safetensors`, atomically, for a trunk without a Hugging Face class.

    Args:
        folder: target.
        params: released weights.
        desired_head: (C, D), stored as `desired_head`.

    Raises:
        RunError: if it cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in params.items()}
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file(weights | {"desired_head": desired_head.detach().cpu().contiguous()}, temporary)
    return folder


def load_exported(folder: str | Path) -> Exported:
    """Load a folder written by `export_model`, or any Hugging Face encoder folder (head and meta are then None).

    Nothing is unpickled, no remote code runs, and no file outside the folder is read.

    Raises:
        UsageError: if there is no model in the folder, or a part of it lies outside.
        RunError: if it is damaged or has a later format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"model folder {folder} does not exist")
    _refuse_escapes(folder)
    meta = read_meta(folder) if (folder / META).is_file() else None
    encoder = TrialSettings().encoder if meta is None else meta.settings.encoder
    local = encoder.model_copy(update={"name": str(folder), "num_layers": None, "revision": None})
    trunk = load_trunk(local, cache_dir=folder)
    head = None if meta is None else _read_head(folder, trunk, meta)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    return Exported(trunk, params, head, meta)


def _write(
    folder: Path, trunk: Trunk, params: Params, head: Tensor, tokenizer: Any, label_names: Sequence[str]
) -> None:
    if trunk.pooling == "native":
        model = trunk.export_hf(params, head, label_names)
    else:
        weights = {name.removeprefix("hf_model."): value.detach().cpu() for name, value in params.items()}
        model = copy.deepcopy(trunk.hf_model).to("cpu")
        model.load_state_dict(weights, strict=False)
        save_file({"weight": head.detach().cpu().contiguous()}, folder / HEAD)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _describe(
    folder: Path,
    trunk: Trunk,
    label_names: Sequence[str],
    settings: TrialSettings,
    metrics: Mapping[str, float],
    failed_checks: Sequence[str],
) -> None:
    document = {
        "format": FORMAT,
        "pooling": trunk.pooling,
        "config_hash": content_hash(settings),
        "label_names": list(label_names),
        "settings": settings.model_dump(mode="json", exclude={"runtime": True, "origin": {"tracking_uri"}}),
        "metrics": null_for_nan(metrics),
        "versions": {name: version(name) for name in ("sdm-ray", "torch", "transformers")},
    }
    write_json(folder / META, document)
    config = trunk.hf_model.config
    card = model_card(
        settings,
        label_names=label_names,
        metrics=metrics,
        model_type=trunk.model_type,
        num_layers=getattr(config, "num_hidden_layers", None),
        failed_checks=failed_checks,
    )
    write_text(folder / "README.md", card)


def _refuse_escapes(folder: Path) -> None:
    root = folder.resolve()
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(root):
            raise UsageError(f"{path} points outside the model folder; copy the file into the folder")
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        values = read_json(index)
        weights = values.get("weight_map") if isinstance(values, dict) else None
        for name in weights.values() if isinstance(weights, dict) else ():
            if not (folder / str(name)).resolve().is_relative_to(root):
                raise UsageError(f"{index} names {name!r}, which lies outside the folder; do not trust this model")


def read_meta(folder: Path) -> ExportMeta:
    """Read `sdm_ray.json` of an exported folder.

    Raises:
        RunError: if it is damaged or has a later format.
    """
    path = folder / META
    document = read_json(path)
    try:
        if document["format"] != FORMAT:
            raise RunError(f"{path} has format {document['format']}, this sdm-ray reads {FORMAT}; upgrade sdm-ray")
        settings = parse_settings(TrialSettings, document["settings"], where=str(path))
        return ExportMeta(
            settings=settings,
            config_hash=str(document["config_hash"]),
            label_names=tuple(document["label_names"]),
            metrics={name: float(value) for name, value in nan_for_null(document["metrics"]).items()},
            versions=dict(document["versions"]),
        )
    except (UsageError, RunError):
        raise
    except MALFORMED as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}); export the model again") from None


def _read_head(folder: Path, trunk: Trunk, meta: ExportMeta) -> Tensor:
    native = trunk.pooling == "native"
    path = folder / (WEIGHTS if native else HEAD)
    last = native_pooling(trunk.model_type).last_linear if native else ""
    name = f"{last}.weight" if native else "weight"
    try:
        if native:
            with safe_open(path, framework="pt") as tensors:
                head: Tensor = tensors.get_tensor(name)
                bias = tensors.get_tensor(f"{last}.bias")
                if bias.any():
                    raise RunError(f"{path}: {last}.bias is not zero, so this is no head that sdm-ray wrote")
        else:
            head = load_file(path)[name]
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path} holds no readable {name} ({error}); export the model again") from None
    if head.shape != (len(meta.label_names), trunk.feature_dim):
        raise RunError(
            f"{path}: {name} has shape {tuple(head.shape)}, expected {(len(meta.label_names), trunk.feature_dim)}; "
            "export the model again"
        )
    if not head.isfinite().all():
        raise RunError(f"{path}: {name} holds NaN or infinite values; take another copy of the model")
    return head
