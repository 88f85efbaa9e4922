"""What trials and commands share: data on the device, encoders, and the attack on what is not trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from sdm_ray.attack.check import check_data
from sdm_ray.config import DataSettings, EncoderSettings, SyntheticWorld, TrialSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.device import DeviceData
from sdm_ray.data.regression import RegressionWorld, SignedVectors
from sdm_ray.data.tokenized import prepare
from sdm_ray.meta.objectives import load_terms
from sdm_ray.meta.outer.optimizer import check_optimizer
from sdm_ray.meta.outer.plan import Plan
from sdm_ray.meta.outer.retention import GeneralSources, load_general_sources
from sdm_ray.meta.validation import split_meta_train
from sdm_ray.models.encoder import Trunk, load_tokenizer, load_trunk, tokenizer_digest
from sdm_ray.models.mlp import VectorMlp

Initialisation = Literal["pretrained", "random"]


@dataclass(frozen=True)
class Workspace:
    """What trials on the same data share: nothing in it changes."""

    data: DeviceData | SignedVectors
    tokenizer: Any
    """None where the data are vectors."""
    world: SyntheticWorld
    """The world whose corpus the built-in encoder has read."""
    cache_dir: Path
    device: torch.device


def resolve_device(name: str) -> torch.device:
    """The device that a setting names; `auto` prefers CUDA.

    Raises:
        UsageError: for a name that torch does not know or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"runtime.device: {name!r} cannot be used here ({reason}); try auto or cpu") from None
    return device


def open_workspace(settings: TrialSettings) -> Workspace:
    """Tokenised data on the device; the last one is kept, so that trials of a sweep in one process share it."""
    runtime = settings.runtime
    return _open_workspace(settings.data, settings.encoder, str(resolve_device(runtime.device)), runtime.cache_folder())


@lru_cache(maxsize=1)
def _open_workspace(data: DataSettings, encoder: EncoderSettings, device: str, cache_dir: Path) -> Workspace:
    if data.source == "regression":
        world = data.regression
        vectors = RegressionWorld(world.num_examples, world.seed, input_dim=world.input_dim, device=device)
        return Workspace(SignedVectors(vectors), None, data.synthetic, cache_dir, torch.device(device))
    tokenizer = load_tokenizer(encoder, cache_dir=cache_dir, world=data.synthetic)
    tokenized = prepare(data, tokenizer, tokenizer_digest(tokenizer), cache_dir)
    return Workspace(
        DeviceData(tokenized, torch.device(device)), tokenizer, data.synthetic, cache_dir, torch.device(device)
    )


def check_inputs(settings: TrialSettings) -> None:
    """Load data and encoder once on the CPU, so that what a trial would refuse is refused before many of them start.

    Raises:
        UsageError: for data, an encoder or an attack that do not fit together.
        RunError: when a hub cannot be reached or the cache cannot be written.
    """
    cpu = settings.model_copy(update={"runtime": settings.runtime.model_copy(update={"device": "cpu"})})
    work = open_workspace(cpu)
    check_data(work.data, settings.attack, Task.HARMFUL)
    check_optimizer(settings.train)
    load_terms(settings.train.term_modules, settings.train.blocking.weights())
    Plan.of(settings.train)
    split_meta_train(work.data, settings.train)
    trunk = load_trunk_on(work, settings.encoder, "pretrained", settings.seed)
    general_sources(work, settings, trunk)


def general_sources(work: Workspace, settings: TrialSettings, trunk: Trunk) -> GeneralSources | None:
    """General text and masked-LM head of the `retain_*` terms; None where no weight asks for them.

    Raises:
        UsageError: for text or an encoder that cannot be used.
        RunError: when a hub cannot be reached.
    """
    return load_general_sources(
        settings.train,
        settings.encoder,
        trunk=trunk,
        tokenizer=work.tokenizer,
        world=work.world,
        max_length=settings.data.max_length,
        device=work.device,
        cache_dir=work.cache_dir,
    )


def load_trunk_on(work: Workspace, encoder: EncoderSettings, initialisation: Initialisation, seed: int) -> Trunk:
    """The encoder on the workspace's device, pretrained or freshly initialised from `seed`."""
    if encoder.name == "mlp":
        (vectors, _), _ = work.data.batch(work.data.indices(Split.TEST)[:1], Task.DESIRED)
        network: Any = VectorMlp(vectors.shape[-1], encoder.width, encoder.num_layers or 2, seed)
        return network.to(work.device)  # type: ignore[no-any-return]
    trunk = load_trunk(encoder, cache_dir=work.cache_dir, world=work.world, initialisation=initialisation, seed=seed)
    trunk.check_data(work.data.width, work.data.max_id)
    return trunk.to(work.device)


def trunk_params(trunk: Trunk) -> Params:
    """The trunk's parameters, detached and shared with it."""
    return {name: value.detach() for name, value in trunk.named_parameters()}
