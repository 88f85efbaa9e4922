"""Workspace of trials and commands: data on the device, encoders, and the check that an attack fits the data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from sdm_ray.attack.check import check_data
from sdm_ray.attack.space import SamplerFactory, the_sampler
from sdm_ray.config import (
    AttackSettings,
    DataSettings,
    DistilSettings,
    EncoderSettings,
    EraseSettings,
    SyntheticWorld,
    TermSettings,
    TrialSettings,
    load_own_modules,
)
from sdm_ray.core.cache import SharedCache
from sdm_ray.core.errors import Faults, RunError, UsageError
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.device import DeviceData
from sdm_ray.data.general import GeneralText, load_general_text, meta_training_text
from sdm_ray.data.regression import RegressionWorld, SignedVectors
from sdm_ray.data.tokenized import prepare
from sdm_ray.meta.objectives import load_terms
from sdm_ray.meta.outer.erase import check_erasure
from sdm_ray.meta.outer.optimizer import check_optimizer
from sdm_ray.meta.outer.plan import Plan
from sdm_ray.meta.outer.retention import GeneralSources, load_general_sources
from sdm_ray.meta.outer.unadapted import check_terms
from sdm_ray.meta.validation import split_meta_train
from sdm_ray.models.builtin import builtin_folder
from sdm_ray.models.encoder import Trunk, load_tokenizer, load_trunk, tokenizer_digest
from sdm_ray.models.masked_lm import MaskedLmHead, load_masked_lm
from sdm_ray.models.mlp import VectorMlp
from sdm_ray.models.pooling import choose_pooling
from sdm_ray.trial.context import ALONE, TrialContext

Initialisation = Literal["pretrained", "random"]


@dataclass(frozen=True)
class Workspace:
    """Data on the device, and encoders, each loaded once."""

    data: DeviceData | SignedVectors
    tokenizer: Any
    """None if the data are vectors."""
    world: SyntheticWorld
    """World whose corpus the built-in encoder was trained on."""
    cache_dir: Path
    device: torch.device
    context: TrialContext = ALONE
    _loaded: dict[tuple[str, str, int], Trunk] = field(default_factory=dict, compare=False, repr=False)
    _heads: dict[str, MaskedLmHead | None] = field(default_factory=dict, compare=False, repr=False)

    def sampler(self, name: str) -> SamplerFactory:
        """Sampler of an attack's search points, by name.

        Raises:
            UsageError: for an unknown name.
        """
        return the_sampler(name, self.context.samplers)

    def trunk(self, encoder: EncoderSettings, initialisation: Initialisation, seed: int) -> Trunk:
        """Encoder on the device, pretrained or freshly initialised from `seed`; loaded once and never modified."""
        key = (encoder.model_dump_json(), initialisation, seed if initialisation == "random" else 0)
        if key not in self._loaded:
            self._loaded[key] = _load_trunk(self, encoder, initialisation, seed)
        return self._loaded[key]

    def masked_lm(self, encoder: EncoderSettings) -> MaskedLmHead | None:
        """Masked-LM head of an encoder, on the device; None if it has none."""
        key = encoder.model_dump_json()
        if key not in self._heads:
            try:
                head = load_masked_lm(encoder, self.tokenizer, cache_dir=self.cache_dir, world=self.world)
                self._heads[key] = head.to(self.device)
            except (UsageError, RunError):
                self._heads[key] = None
        return self._heads[key]


def resolve_device(name: str) -> torch.device:
    """Device of a setting; `auto` prefers CUDA.

    Raises:
        UsageError: for a name unknown to torch, or a device that the machine lacks.
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


def with_pooling(settings: TrialSettings) -> TrialSettings:
    """Settings with `encoder.pooling: auto` resolved from the encoder's own files."""
    encoder = choose_pooling(settings.encoder).encoder
    return settings if encoder == settings.encoder else settings.model_copy(update={"encoder": encoder})


def open_workspace(settings: TrialSettings, context: TrialContext = ALONE) -> Workspace:
    """Load tokenised data onto the device; the last data are cached for further trials in the same process."""
    runtime, modules = settings.runtime, load_own_modules(settings).modules
    device = str(resolve_device(runtime.device))
    sources = tuple(sorted(modules.items()))
    kept = _open_data(settings.data, settings.encoder, device, runtime.cache_folder(), context.shared, sources)
    return replace(kept, context=context, _loaded={}, _heads={})


@lru_cache(maxsize=1)
def _open_data(
    data: DataSettings,
    encoder: EncoderSettings,
    device: str,
    cache_dir: Path,
    shared: SharedCache | None,
    modules: tuple[tuple[str, str], ...],
) -> Workspace:
    if data.source == "regression":
        world = data.regression
        vectors = RegressionWorld(world.num_examples, world.seed, input_dim=world.input_dim, device=device)
        return Workspace(SignedVectors(vectors), None, data.synthetic, cache_dir, torch.device(device))
    if encoder.name == "builtin":
        builtin_folder(data.synthetic, cache_dir=cache_dir, shared=shared)
    tokenizer = load_tokenizer(encoder, cache_dir=cache_dir, world=data.synthetic)
    tokenized = prepare(data, tokenizer, tokenizer_digest(tokenizer), cache_dir, shared)
    return Workspace(
        DeviceData(tokenized, torch.device(device)), tokenizer, data.synthetic, cache_dir, torch.device(device)
    )


def check_attack(work: Workspace, attack: AttackSettings) -> None:
    """Reject an attack that the data are too small for, or that uses unknown names.

    Raises:
        UsageError: naming the invalid setting.
    """
    check_data(work.data, attack, Task.HARMFUL)
    work.sampler(attack.sampler)


def check_inputs(
    settings: TrialSettings,
    context: TrialContext = ALONE,
    further: Sequence[AttackSettings] = (),
    erasures: Sequence[EraseSettings] = (),
    distillations: Sequence[DistilSettings] = (),
    terms: Sequence[tuple[Collection[str], TermSettings]] = (),
) -> dict[str, str]:
    """Load data and encoder once on the CPU, so that bad settings are rejected before trials start.

    Faults of the data are reported together, before an encoder is loaded.

    Args:
        settings: the trial.
        context: context with its samplers.
        further: attacks besides the trial's own and those of its rungs.
        erasures: erasures besides the trial's own.
        distillations: distillations besides the trial's own.
        terms: names of blocking terms with settings of single terms, besides the trial's own.

    Returns:
        Digests of `data` and of `encoder`; the latter is left out if it is initialised from a seed.

    Raises:
        UsageError: if data, encoder and attack do not fit together; one line per fault.
        RunError: if a hub cannot be reached or the cache cannot be written.
    """
    cpu = settings.model_copy(update={"runtime": settings.runtime.model_copy(update={"device": "cpu"})})
    work = open_workspace(cpu, context)
    faults = Faults()
    rungs = (settings.rung_attack(index) for index in range(len(settings.rungs)))
    for attack in (settings.attack, *rungs, *further):
        faults.check(check_attack, work, attack)
    faults.check(check_optimizer, settings.train)
    faults.check(load_terms, settings.train.term_modules, settings.train.blocking.weights())
    if faults.check(Plan.of, settings.train):
        faults.check(split_meta_train, work.data, settings.train)
    faults.refuse()
    trunk = work.trunk(settings.encoder, "pretrained", settings.seed)
    from sdm_ray.trial.dry import dry_pass

    dry_pass(work, trunk, settings)
    general_sources(work, settings, trunk)
    for erase in (settings.train.erase, *erasures):
        if erase.is_on():
            faults.check(check_erasure, erase, trunk, work.data)
    for names, of_terms in ((settings.train.blocking.weights(), settings.train.terms), *terms):
        faults.check(check_terms, names, of_terms, trunk, work.data)
    read: set[str] = set()
    for distil in (settings.train.distil, *distillations):
        if distil.num_steps and (texts := distil.general.model_dump_json()) not in read:
            read.add(texts)
            faults.check(distillation_texts, work, settings, distil, trunk)
    faults.refuse()
    drawn = settings.encoder.name == "mlp"
    return {"data": work.data.digest} | ({} if drawn else {"encoder": trunk.digest()})


def general_sources(work: Workspace, settings: TrialSettings, trunk: Trunk) -> GeneralSources | None:
    """General text and masked-LM head for the `retain_*` terms; None if all their weights are zero.

    Raises:
        UsageError: for unusable text or an unusable encoder.
        RunError: if a hub cannot be reached.
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


def distillation_texts(
    work: Workspace, settings: TrialSettings, distil: DistilSettings, trunk: Trunk
) -> tuple[GeneralText, GeneralText | None]:
    """Desired and general texts of a distillation; None for the latter if no step uses any.

    Raises:
        UsageError: for an unusable source, or an encoder that does not take text.
        RunError: if a hub cannot be reached.
    """
    if not isinstance(trunk, Trunk):
        raise UsageError("train.distil needs an encoder of texts: set train.distil.num_steps to 0")
    indices, _ = split_meta_train(work.data, settings.train)
    desired = meta_training_text(work.data, indices, scrubbed=distil.scrub == "all")
    if not distil.general_batch_size:
        return desired, None
    scrubbed = distil.scrub != "none"
    if distil.general.source is None:
        return desired, meta_training_text(work.data, indices, distil.general.max_texts, scrubbed=scrubbed)
    general = load_general_text(
        distil.general,
        work.tokenizer,
        world=work.world,
        max_length=min(settings.data.max_length, trunk.max_length),
        device=work.device,
        scrubbed=scrubbed,
    )
    trunk.check_data(general.width, general.max_id)
    return desired, general


def _load_trunk(work: Workspace, encoder: EncoderSettings, initialisation: Initialisation, seed: int) -> Trunk:
    if encoder.name == "mlp":
        (vectors, _), _ = work.data.batch(work.data.indices(Split.TEST)[:1], Task.DESIRED)
        network: Any = VectorMlp(vectors.shape[-1], encoder.width, encoder.num_layers or 2, seed)
        return network.to(work.device)  # type: ignore[no-any-return]
    trunk = load_trunk(encoder, cache_dir=work.cache_dir, world=work.world, initialisation=initialisation, seed=seed)
    trunk.check_data(work.data.width, work.data.max_id)
    return trunk.to(work.device)


def trunk_params(trunk: Trunk) -> Params:
    """Parameters of the trunk, detached; they share its memory."""
    return {name: value.detach() for name, value in trunk.named_parameters()}
