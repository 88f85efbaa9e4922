"""Pooling from an encoder's own files; a sentence encoder has it in `1_Pooling/config.json`.

Imports neither torch nor transformers, so that the driver of a sweep can use it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from sdm_ray.config import EncoderSettings
from sdm_ray.core.files import is_folder, user_path
from sdm_ray.core.hub import is_away, is_hub_id, quiet_hub

MODULES, DEFAULT_FOLDER, FILE = "modules.json", "1_Pooling", "config.json"
MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
"""Supported modes of sentence-transformers, with their names here."""
SECONDS = 3.0
"""Timeout of a request to the hub."""


class Chosen(NamedTuple):
    """An encoder whose `auto` pooling is resolved."""

    encoder: EncoderSettings
    note: str | None
    """One sentence if the encoder's own files specify a pooling; None if they do not, or if `auto` was not set."""


def choose_pooling(encoder: EncoderSettings) -> Chosen:
    """Resolve `pooling: auto`: from the encoder's own files, otherwise `native`. Any other pooling is kept.

    Args:
        encoder: a local folder, a hub id, `builtin` or `mlp`. A hub id is looked up in the local cache first; if the
            hub does not answer, the file counts as missing.
    """
    if encoder.pooling != "auto":
        return Chosen(encoder, None)
    found = None if encoder.name in ("builtin", "mlp") else _asked_for(encoder)
    if found is None:
        return Chosen(encoder.model_copy(update={"pooling": "native"}), None)
    file, modes = found
    offered = [MODES[mode] for mode in modes if mode in MODES]
    if len(modes) == len(offered) == 1:
        note = f"encoder.pooling: {offered[0]}, as {file} of {encoder.name} says"
        return Chosen(encoder.model_copy(update={"pooling": offered[0]}), note)
    words = " and ".join(mode.removeprefix("pooling_mode_") for mode in modes) or "nothing that is known"
    note = f"encoder.pooling: native, for {file} of {encoder.name} asks for {words}, which is not offered"
    return Chosen(encoder.model_copy(update={"pooling": "native"}), note)


def _asked_for(encoder: EncoderSettings) -> tuple[str, list[str]] | None:
    """File that configures pooling, and its modes; None if there is none."""
    modules = _read(encoder, MODULES)
    folder = DEFAULT_FOLDER
    if isinstance(modules, list):
        named = [module for module in modules if isinstance(module, dict)]
        paths = [str(module.get("path")) for module in named if str(module.get("type")).endswith(".Pooling")]
        folder = paths[0] if paths else folder
    values = _read(encoder, f"{folder}/{FILE}")
    if not isinstance(values, dict):
        return None
    modes = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    if isinstance(values.get("pooling_mode"), str):  # format of later versions
        spelt = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
        modes = [spelt.get(values["pooling_mode"], f"pooling_mode_{values['pooling_mode']}")]
    return f"{folder}/{FILE}", modes


def _read(encoder: EncoderSettings, name: str) -> Any:
    """Read a JSON file of the encoder; None if it is missing or unreadable."""
    folder = user_path(encoder.name, "encoder.name")
    path = folder / name if is_folder(folder) else _from_hub(encoder, name)
    try:
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _from_hub(encoder: EncoderSettings, name: str) -> Path | None:
    if encoder.name.startswith((".", "/", "~")) or not is_hub_id(encoder.name, bare=True):
        return None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(encoder.name, name, revision=encoder.revision)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None or is_away():  # known to be missing, or offline
        return None
    try:
        with quiet_hub():
            return Path(hf_hub_download(encoder.name, name, revision=encoder.revision, etag_timeout=SECONDS))
    except Exception:  # network and hub errors have no common base
        return None
