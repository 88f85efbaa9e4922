"""Settings of one trial."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from sdm_ray.config.attack import AttackSettings
from sdm_ray.config.base import BatchSize, PositiveFloat, PositiveInt, Seed, Settings
from sdm_ray.config.data import DataSettings, EncoderSettings
from sdm_ray.config.train import TrainSettings
from sdm_ray.core.files import user_path

FINAL_SEED, RUNG_SEED, REPEAT_SEED = 1_000_003, 1_009, 10_007
"""Offsets that are added to the attack's seed: for the final stage, per rung, and per further training seed."""


class RuntimeSettings(Settings):
    """Where a trial runs; not part of the content hash."""

    device: str = "auto"
    """`auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`."""
    num_threads: PositiveInt = 1
    """CPU threads of a trial's process."""
    cache_dir: str | None = None
    """Folder for tokenised data, the built-in encoder and floors; None for `$SDM_RAY_CACHE`, else ~/.cache/sdm-ray."""

    def cache_folder(self) -> Path:
        """The cache folder: the setting, else `$SDM_RAY_CACHE`, else ~/.cache/sdm-ray.

        Raises:
            UsageError: if there is no home folder.
        """
        folder = self.cache_dir or os.environ.get("SDM_RAY_CACHE") or "~/.cache/sdm-ray"
        return user_path(folder, "the cache folder (trial.runtime.cache_dir or SDM_RAY_CACHE)")


class Origin(Settings):
    """Origin of the settings, written by `sdm-ray best`; not part of the content hash."""

    sweep: str
    """Name of the sweep."""
    trial_id: str
    """Id of the selected trial."""
    rule: str
    """The rule that selected it."""
    metrics: dict[str, float] = {}
    """The trial's metrics in the sweep."""
    sweep_id: str | None = None
    """Id of the sweep in MLflow; None if it was not tracked."""
    tracking_uri: str | None = None
    """Tracking URI of the sweep; `sdm-ray train` links its run to the sweep there."""
    experiment: str = "sdm-ray"
    """MLflow experiment of the sweep."""


class ScratchSettings(Settings):
    """The reference `scratch`: a randomly initialised encoder, trained on the desired task until accuracy plateaus."""

    enabled: bool = True
    """Train the reference and measure the head start kept against it; if false, that is not known."""
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (3e-4, 1e-3, 3e-3)
    """Candidate learning rates of Adam; the one with the best accuracy on attacker-validation is used."""
    batch_size: BatchSize = 32
    """Batch size."""
    screen_steps: PositiveInt = 300
    """Number of steps with every learning rate, before training continues with the best one."""
    max_steps: PositiveInt = 3000
    """Largest number of steps."""
    every_steps: PositiveInt = 100
    """Number of steps between two evaluations of the desired accuracy on attacker-validation."""
    patience: PositiveInt = 5
    """Number of evaluations without improvement after which training stops."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.enabled and not self.every_steps <= self.screen_steps <= self.max_steps:
            raise ValueError(
                f"every_steps ({self.every_steps}), screen_steps ({self.screen_steps}) and max_steps "
                f"({self.max_steps}) must not fall in this order"
            )
        return self


class RungSettings(Settings):
    """An attack during training, scored on validation examples only."""

    step: PositiveInt
    """Number of outer steps after which the model is attacked."""
    attack: dict[str, Any] = {}
    """Changes to the trial's attack, usually a smaller budget that grows from rung to rung."""


def as_modules(value: Any) -> dict[str, str]:
    """Convert a name, a list of names or a mapping of modules to a mapping from name to digest.

    Raises:
        ValueError: for any other value, or an invalid module name.
    """
    named = [value] if isinstance(value, str) else value
    modules = dict.fromkeys(named, "") if isinstance(named, list | tuple) else named
    if not isinstance(modules, Mapping) or not all(isinstance(item, str) for pair in modules.items() for item in pair):
        raise ValueError(f"modules must be a list of names of modules, got {value!r}")
    for name in modules:
        if not _MODULE.fullmatch(name):
            plain = name.removesuffix(".py").replace("/", ".")
            hint = f"; write {plain!r}" if _MODULE.fullmatch(plain) else ""
            raise ValueError(f"{name!r} is no name of a module{hint}")
    return dict(modules)


_MODULE = re.compile(r"(?!.*\.py$)[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class TrialSettings(Settings):
    """All settings of a trial: training, release and attack."""

    LATER: ClassVar[frozenset[str]] = frozenset({"modules"})

    name: str = "trial"
    """A display name; not part of the content hash."""
    modules: dict[str, str] = {}
    """Your own modules, a list of names. They are imported first and register blocking terms, attack families, metrics
    or data sources. Stored settings contain the digest of each module's source and reject a module with another one."""
    seed: Seed = 0
    """Seed of initialisation, batches and adversary draws of meta-training."""
    data: DataSettings = DataSettings()
    """The data."""
    encoder: EncoderSettings = EncoderSettings()
    """The encoder."""
    train: TrainSettings = TrainSettings()
    """Meta-training."""
    attack: AttackSettings = AttackSettings()
    """The attack evaluation."""
    scratch: ScratchSettings = ScratchSettings()
    """The reference for head starts; not part of the content hash, because it affects neither model nor attack."""
    rungs: tuple[RungSettings, ...] = ()
    """Attacks during training, by ascending step. A sweep uses them to stop trials (`search.stopping`)."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, threads and cache."""
    origin: Origin | None = None
    """Origin of these settings."""

    def rung_attack(self, index: int) -> AttackSettings:
        """The attack of a rung: with its own seeds, without benign tasks."""
        own = {"seed": self.attack.seed + RUNG_SEED * (index + 1), "benign_num_examples": ()}
        return _changed(self.attack, own | self.rungs[index].attack)

    def own_scratch(self) -> ScratchSettings | None:
        """Settings of the reference `scratch`; None if it is not trained (always for vectors, whose encoder is not
        pretrained)."""
        return self.scratch if self.scratch.enabled and self.data.source != "regression" else None

    @field_validator("modules", mode="before")
    @classmethod
    def _modules_by_name(cls, value: Any) -> dict[str, str]:
        return as_modules(value)

    @model_validator(mode="after")
    def _scratch_is_described(self) -> Self:
        if self.train.method == "scratch" and self.own_scratch() is None:
            raise ValueError(
                "train.method 'scratch' needs scratch.enabled, and a pretrained encoder to differ from, which "
                "data.source 'regression' has not: enable it, or leave the method out"
            )
        return self

    @model_validator(mode="after")
    def _rungs_are_valid(self) -> Self:
        steps = [0, *(rung.step for rung in self.rungs), self.train.num_outer_steps]
        if self.rungs and any(a >= b for a, b in pairwise(steps)):
            raise ValueError(
                f"rungs must have rising steps below train.num_outer_steps ({steps[-1]}), got {steps[1:-1]}"
            )
        for index in range(len(self.rungs)):
            self.rung_attack(index)
        return self

    @model_validator(mode="after")
    def _vectors_go_through_the_mlp(self) -> Self:
        if (self.encoder.name == "mlp") != (self.data.source == "regression"):
            raise ValueError(
                f"encoder.name is {self.encoder.name!r} and data.source {self.data.source!r}, but 'mlp' and "
                "'regression' belong together: set both or neither"
            )
        if self.data.source == "regression" and self.train.method == "pretrained":
            raise ValueError("data.source 'regression' has no pretrained encoder: leave method 'pretrained' out")
        if self.data.source == "regression" and self.train.erase.num_directions:
            raise ValueError(
                "data.source 'regression' has no residual stream of tokens: leave method 'erase' out and set "
                "train.erase.num_directions to 0"
            )
        if self.data.source == "regression" and self.train.distil.num_steps:
            raise ValueError(
                "data.source 'regression' has no texts to distil on: leave methods 'distil' and 'distilled_scratch' "
                "out and set train.distil.num_steps to 0"
            )
        return self

    @model_validator(mode="after")
    def _builtin_reads_the_synthetic_world_only(self) -> Self:
        if self.encoder.name == "builtin" and self.data.source != "synthetic":
            raise ValueError(
                f"encoder.name 'builtin' knows the words of the synthetic world alone, and data.source is "
                f"{self.data.source!r}: set encoder.name to a Hugging Face encoder (a hub id or a local folder)"
            )
        return self


def _changed(attack: AttackSettings, changes: Mapping[str, Any]) -> AttackSettings:
    """Attack settings with changes; a `preset` among them replaces all settings except n."""
    kept: dict[str, Any] = {"num_examples": attack.num_examples}
    if "preset" not in changes:
        kept = attack.model_dump() | {"preset": None}
    return AttackSettings.model_validate({**kept, **changes})
