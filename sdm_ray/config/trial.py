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
"""Added to the attack's seed for the final stage, for each rung, and for each further training seed."""


class RuntimeSettings(Settings):
    """Where a trial runs; no part of a config's content hash."""

    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    num_threads: PositiveInt = 1
    """CPU threads of one trial's process."""
    cache_dir: str | None = None
    """Folder of tokenised data, the built-in encoder and floors; None is `$SDM_RAY_CACHE` or ~/.cache/sdm-ray."""

    def cache_folder(self) -> Path:
        """The cache folder: the setting, else `$SDM_RAY_CACHE`, else ~/.cache/sdm-ray.

        Raises:
            UsageError: where there is no home folder.
        """
        folder = self.cache_dir or os.environ.get("SDM_RAY_CACHE") or "~/.cache/sdm-ray"
        return user_path(folder, "the cache folder (trial.runtime.cache_dir or SDM_RAY_CACHE)")


class Origin(Settings):
    """Where a config came from, written by `sdm-ray best`; no part of its content hash."""

    sweep: str
    """Name of the sweep."""
    trial_id: str
    """The trial that was picked."""
    rule: str
    """The rule that picked it."""
    metrics: dict[str, float] = {}
    """What was measured then."""
    sweep_id: str | None = None
    """Id of the sweep in MLflow; None where it was not tracked."""
    tracking_uri: str | None = None
    """Where the sweep was tracked; `sdm-ray train` links its run to it there."""
    experiment: str = "sdm-ray"
    """MLflow experiment of the sweep."""


class ScratchSettings(Settings):
    """The reference `scratch`: random initialisation, trained on the desired task until that flattens."""

    enabled: bool = True
    """Train it and measure head starts against it; without, no head start kept is known."""
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (3e-4, 1e-3, 3e-3)
    """Learning rates of Adam that are tried; the best on attacker-validation is taken."""
    batch_size: BatchSize = 32
    """Examples of a step."""
    screen_steps: PositiveInt = 300
    """Steps that every learning rate gets before one of them goes on."""
    max_steps: PositiveInt = 3000
    """Most steps."""
    every_steps: PositiveInt = 100
    """Steps between two scorings of the desired accuracy on attacker-validation."""
    patience: PositiveInt = 5
    """Scorings without a better accuracy after which it has flattened."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.enabled and not self.every_steps <= self.screen_steps <= self.max_steps:
            raise ValueError(
                f"every_steps ({self.every_steps}), screen_steps ({self.screen_steps}) and max_steps "
                f"({self.max_steps}) must not fall in this order"
            )
        return self


class RungSettings(Settings):
    """A moment of training at which the model is attacked on its way, on validation examples alone."""

    step: PositiveInt
    """After so many outer steps."""
    attack: dict[str, Any] = {}
    """Changes to the trial's attack, usually a smaller budget that grows from rung to rung."""


def as_modules(value: Any) -> dict[str, str]:
    """Modules as a mapping from name to digest, given so, as a list of names, or as one name.

    Raises:
        ValueError: for anything else.
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
    """Everything that one trial needs: train, release, attack."""

    LATER: ClassVar[frozenset[str]] = frozenset({"modules"})

    name: str = "trial"
    """A name for people; no part of the content hash."""
    modules: dict[str, str] = {}
    """Modules of your own that are imported first, because they register blocking terms, attack families, metrics or
    sources of data: a list of names. What is stored has the digest of each source beside it, and takes no other."""
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
    """The reference that head starts are measured against; no part of the content hash, for it changes neither model
    nor attack."""
    rungs: tuple[RungSettings, ...] = ()
    """Attacks on the way, by rising step. A sweep stops trials by them (`search.stopping`)."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Where it runs."""
    origin: Origin | None = None
    """Where this config came from."""

    def rung_attack(self, index: int) -> AttackSettings:
        """The attack of a rung: its own seeds, no benign tasks."""
        own = {"seed": self.attack.seed + RUNG_SEED * (index + 1), "benign_num_examples": ()}
        return _changed(self.attack, own | self.rungs[index].attack)

    def own_scratch(self) -> ScratchSettings | None:
        """How the reference `scratch` is trained; None where it is not, as for vectors, whose encoder knows nothing."""
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
    """An attack with changes; a `preset` among them takes the place of all that it sets but n."""
    kept: dict[str, Any] = {"num_examples": attack.num_examples}
    if "preset" not in changes:
        kept = attack.model_dump() | {"preset": None}
    return AttackSettings.model_validate({**kept, **changes})
