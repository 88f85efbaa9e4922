"""Sources of encoders: a local folder, the hub's cache, or the hub.

Only safetensors are read, and only code of transformers runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers.utils import logging as hf_logging

from sdm_ray.config import EncoderSettings, SyntheticWorld
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import is_file, is_folder, user_path
from sdm_ray.core.hub import brief, is_away, is_hub_id, quiet_hub

NEW_WEIGHTS_SEED = 0
"""Seed for weights that a pretrained checkpoint lacks (such as a pooler), so that loading is reproducible."""

T = TypeVar("T")


def resolve(settings: EncoderSettings, cache_dir: Path, world: SyntheticWorld | None) -> str | Path:
    """Local folder (Path) or hub id (str) of an encoder.

    Raises:
        UsageError: for a name that is neither.
    """
    name = settings.name
    if name == "builtin":
        from sdm_ray.models.builtin import builtin_folder

        return builtin_folder(world, cache_dir=cache_dir)
    folder = user_path(name, "encoder.name")
    if is_folder(folder):
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"encoder.name: folder {name} holds no config.json, so it is not a Hugging Face model folder"
            )
        return folder
    if is_file(folder):
        raise UsageError(
            f"encoder.name: {name} is a file; give the folder that holds config.json and model.safetensors"
        )
    if name.startswith((".", "/", "~")) or not is_hub_id(name, bare=True):
        raise UsageError(
            f"encoder.name: folder {name} does not exist (otherwise give 'builtin' or a hub id like owner/name)"
        )
    return name


def fetch(source: str | Path, revision: str | None, load: Callable[..., T], **options: Any) -> T:
    """Call a `from_pretrained`; a hub id is looked up in the local hub cache first, then on the hub.

    Raises:
        UsageError: for a folder that cannot be loaded, or weights in another format.
        RunError: if the hub cannot be reached or does not have the encoder.
    """
    options["trust_remote_code"] = False
    with quiet():
        if isinstance(source, Path):
            try:
                return load(str(source), local_files_only=True, **options)
            except OSError as error:
                raise UsageError(f"encoder.name: folder {source} cannot be loaded: {brief(error)}") from None
        try:
            return load(source, revision=revision, local_files_only=True, **options)
        except OSError:
            pass
        try:
            if is_away():
                raise OSError("connect")
            return load(source, revision=revision, **options)
        except OSError as error:
            if "safetensors" in str(error) and "connect" not in str(error):
                raise UsageError(
                    f"encoder.name {source!r} has no weights in safetensors format, the only one that is loaded"
                ) from None
            where = f"{source!r} (revision {revision!r})" if revision else repr(source)
            raise RunError(
                f"encoder {where} could not be had from the Hugging Face hub (no network, or no such model); point "
                "encoder.name at a local folder with config.json, model.safetensors and tokenizer.json (--encoder of "
                "`sdm-ray init`)"
            ) from None


def keep_layers(config: Any, settings: EncoderSettings) -> None:
    """Shorten the configuration; the checkpoint's other layers are then not loaded."""
    keep = settings.num_layers
    if keep is None:
        return
    if keep > config.num_hidden_layers:
        raise UsageError(f"encoder.num_layers is {keep}, but {settings.name!r} has {config.num_hidden_layers} layers")
    config.num_hidden_layers = keep
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types)[:keep]


def check_weights_file(folder: Path) -> None:
    """Reject a folder without weights in safetensors format.

    Raises:
        UsageError: naming the weights that it contains instead.
    """
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    found = f" (it holds {', '.join(other[:3])}: save it again with safetensors)" if other else ""
    raise UsageError(f"encoder.name: folder {folder} has no model.safetensors{found}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator, which initialises weights, and restore its state afterwards."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed CUDA
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence load reports, progress bars and retry messages of transformers and the hub."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(hf_logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        with quiet_hub():
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
