"""Settings of one trial, of a sweep, and of where both run."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from sdm_ray.config.attack import AttackSettings
from sdm_ray.config.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Seed,
    Settings,
)
from sdm_ray.config.space import Distribution
from sdm_ray.config.train import Method
from sdm_ray.config.trial import FINAL_SEED, TrialSettings, _changed, as_modules
from sdm_ray.core.metric_names import Metric

VARIANT_NAME = re.compile(
    rf"(?!(?:{'|'.join(get_args(Method))}|t\d+)(?:-s\d+)?$)(?!.*-(?:s\d+|final)$)[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
)
"""Names that no trial has by itself, and that can be folders."""


class Objective(Settings):
    """One number that the sweep optimises."""

    metric: str
    """Name of a trial metric."""
    direction: Literal["maximize", "minimize"]
    """Which way is better."""


Sampler = Literal["tpe", "nsga2", "nsga3", "gp", "qmc", "random"]
KnownPoint = Literal["paper", "paper_variant"]


class StoppingSettings(Settings):
    """When a trial is stopped at a rung: never because its attack looks weak so far. References are never stopped."""

    infeasible_slack: NonNegativeFloat | None = 0.05
    """Stop one whose desired accuracy lies below the tuned reference's at the same rung by more than this and
    `max_desired_drop`; None never does."""
    broken: bool = True
    """Stop one that the attack recovers from no less than from the tuned reference at the same rung."""
    dominated_share: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Stop one that at least this share of those that came to the same rung before it dominate; None never does."""
    min_peers: PositiveInt = 4
    """Trials that must have come to a rung before one is stopped because it is dominated."""


class SearchSettings(Settings):
    """How Optuna searches."""

    LATER: ClassVar[frozenset[str]] = frozenset({"sampler_options"})

    num_trials: NonNegativeInt = 16
    """Points that are tried, the references apart; each is one trial a seed. With 0 the references alone are run."""
    num_seeds: PositiveInt = 1
    """Training seeds of every point and reference, `trial.seed` and those after it; each is attacked with subsets,
    orders and heads of its own. The search and the frontier take means over them, with 95 % intervals."""
    max_hours: PositiveFloat | None = None
    """Wall-clock hours, those of earlier runs of the sweep included, after which no further point is tried. What has
    begun, and the final stage, still end."""
    max_gpu_hours: PositiveFloat | None = None
    """The same in GPU hours that trials have occupied."""
    sampler: Sampler = "tpe"
    """Optuna's sampler. `gp` takes seconds a trial and draws conditional settings at random; `qmc` and `random` learn
    nothing from results."""
    sampler_options: dict[str, Any] = {}
    """Further arguments of Optuna's sampler, such as `n_ei_candidates` of `tpe`, which by default is `multivariate` and
    `group`. A sweep keeps the defaults that it began with."""
    num_startup_trials: PositiveInt = 8
    """Random points before TPE or the Gaussian process models anything."""
    points: tuple[dict[str, Any], ...] = ()
    """Points (dotted path to value) that are tried first; what a point leaves out is sampled."""
    known_points: tuple[KnownPoint, ...] = ()
    """Published settings that are tried after `points`; of each what the space searches."""
    warm_start: str | None = None
    """An earlier sweep, by its folder or its name below `output_dir`. The sampler is given its results where all
    but the search was the same, so that nothing is trained twice; they are no points of this sweep's frontier."""
    max_desired_drop: Probability | None = None
    """A trial is feasible only if its desired accuracy is at most this far below the tuned reference's."""
    stopping: StoppingSettings = StoppingSettings()
    """What `trial.rungs` are for."""
    require_audit: bool = True
    """A trial is feasible only if it passes the audit. With false the sampler is not told and the trial counts as
    complete; what fails the audit stays off the frontier all the same."""


class FinalSettings(Settings):
    """The last stage of a sweep: the best points and the references are attacked again, then winners are named."""

    num_points: PositiveInt = 3
    """Points of the front that are attacked again, those that together dominate most."""
    attack: dict[str, Any] = {}
    """Changes to `trial.attack`; a `preset` takes the place of its families and budget. Where nothing is said, twice
    the search points and re-runs, and in any case seeds that no trial has used."""


class ResourceSettings(Settings):
    """What one trial occupies on the cluster."""

    LATER: ClassVar[frozenset[str]] = frozenset({"max_kills"})

    cpus_per_trial: PositiveFloat = 1.0
    """Ray CPUs of a trial."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """Ray GPUs of a trial, fractions allowed."""
    max_concurrent_trials: PositiveInt | None = None
    """Trials at once; None is as many as fit."""
    max_failures: NonNegativeInt = 2
    """Times that a trial whose process died is started again from its checkpoint."""
    max_kills: PositiveInt = 3
    """Drivers that may give a searched trial up because its process was ended from outside (out of the machine's
    memory, killed, its node lost) before `--resume` leaves it out; `--retry-infrastructure` repeats it."""
    max_silent_seconds: PositiveFloat | None = 7200.0
    """Seconds without progress after which a trial's process is taken for hung, killed and started again, as one that
    died; None waits for ever."""
    ray_address: str | None = None
    """Address of a running Ray cluster (`auto` finds it), or `local` for one of the sweep's own, on loopback only. None
    is the cluster of the Ray job that the sweep runs in, else that of `RAY_ADDRESS`, else `local`."""


class TrackingSettings(Settings):
    """MLflow."""

    LATER: ClassVar[frozenset[str]] = frozenset({"tags"})
    MEANT: ClassVar[dict[str, dict[Any, Any]]] = {"experiment": {None: "sdm-ray"}}

    enabled: bool = True
    """Log to MLflow."""
    uri: str | None = None
    """Tracking URI. None is that of `MLFLOW_TRACKING_URI`, else `mlflow.db` in `output_dir`, which all sweeps there
    share (with `storage_path` the sweep's own folder, which is what is copied). A sweep goes on where it began."""
    experiment: str | None = None
    """MLflow experiment. None is that of `MLFLOW_EXPERIMENT_NAME`, else `sdm-ray`."""
    tags: dict[str, str] = {}
    """Tags of every run, beside those of `MLFLOW_RUN_CONTEXT`."""
    log_models: bool = False
    """Upload every released model (weights included) to its run, so that others attack and register it from there."""
    system_metrics: bool = False
    """Log CPU, memory, disk and GPU use of the driver's machine to the sweep's run."""


class SweepSettings(Settings):
    """A sweep: one trial's settings, what varies in them, and how the search is run."""

    name: str = "sweep"
    """Name of the sweep and of its folder."""
    seed: Seed = 0
    """Seed of the search."""
    output_dir: str = "runs"
    """Folder that the sweep's own folder is made in."""
    trial: TrialSettings = TrialSettings()
    """The settings that every trial starts from."""
    space: dict[str, Distribution] = {}
    """Dotted path within `trial` to the values that it takes."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (
        Objective(metric=str(Metric.DESIRED_ACCURACY), direction="maximize"),
        Objective(metric=str(Metric.HARMFUL_WORST_ACCURACY), direction="minimize"),
    )
    """What is optimised. The first of each direction is drawn; all decide what stands on the frontier."""
    references: tuple[Method, ...] = ("pretrained", "random", "scratch", "tuned", "ac")
    """Methods that are trained and attacked under the same budget and drawn beside the frontier."""
    variants: dict[str, dict[str, Any]] = {}
    """Further references by a name of their own: changes to `trial` by dotted path. `{mlac-k4:
    {train.adversary.num_steps: 4}}`, say."""
    search: SearchSettings = SearchSettings()
    """The search."""
    final: FinalSettings | None = None
    """A last, stronger attack on what the search found; None calls the search's own attack the last."""
    resources: ResourceSettings = ResourceSettings()
    """Resources."""
    storage: str | None = None
    """Optuna storage: `journal:///path` or a URL of SQLAlchemy's; None is a sqlite file in the sweep's folder."""
    storage_path: str | None = None
    """Folder that all nodes reach (`s3://`, `gs://`, `file://`, what else pyarrow opens), in which the sweep and its
    trials keep copies of their folders; None where all nodes see `output_dir`."""
    tracking: TrackingSettings = TrackingSettings()
    """Where runs are logged."""

    def final_attack(self) -> AttackSettings:
        """The attack of the final stage."""
        attack, changes = self.trial.attack, {} if self.final is None else self.final.attack
        larger = {
            "num_search_trials": 2 * attack.num_search_trials,
            "num_probe_trials": 2 * attack.num_probe_trials,
            "num_rerun_seeds": 2 * attack.num_rerun_seeds,
        }
        fresh = {"seed": attack.seed + FINAL_SEED}
        return _changed(attack, (fresh if "preset" in changes else fresh | larger) | changes)

    @model_validator(mode="before")
    @classmethod
    def _modules_are_the_trials(cls, values: Any) -> Any:
        """`modules` may stand at the top of a sweep file; its trials are what loads them."""
        if not isinstance(values, dict) or "modules" not in values:
            return values
        rest = {name: value for name, value in values.items() if name != "modules"}
        trial = rest.get("trial", {})
        trial = trial.model_dump() if isinstance(trial, TrialSettings) else trial
        if not isinstance(trial, dict):
            return rest
        modules = values["modules"]
        with suppress(ValueError):  # which the trial says better, with the path
            modules = as_modules(modules) | as_modules(trial.get("modules", {}))
        return rest | {"trial": {**trial, "modules": modules}}

    @field_validator("variants")
    @classmethod
    def _variants_have_names_of_their_own(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            if not VARIANT_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot name a variant: use lower-case letters, digits and single hyphens, begin with a "
                    "letter, and leave method names, t0000 and endings such as -s1 and -final to the sweep"
                )
        return value

    @model_validator(mode="after")
    def _urls_hold_no_password(self) -> Self:
        urls = {"storage": self.storage, "storage_path": self.storage_path, "tracking.uri": self.tracking.uri}
        for name, url in urls.items():
            try:
                password = None if url is None else urlsplit(url).password
            except ValueError as error:
                raise ValueError(f"{name} is {url!r}, which is no address ({error}); correct it") from None
            if password is not None:
                raise ValueError(
                    f"{name} holds a password, which would be written into the sweep's folder and to MLflow: leave it "
                    "out and set PGPASSWORD, PGPASSFILE or MLFLOW_TRACKING_PASSWORD in the environment"
                )
        return self

    @model_validator(mode="after")
    def _vectors_have_no_final_stage(self) -> Self:
        if self.final is not None and self.trial.data.source == "regression":
            raise ValueError("final attacks exported encoders of text, but data.source is 'regression': leave it out")
        return self

    @model_validator(mode="after")
    def _final_attack_is_valid(self) -> Self:
        if self.final is not None and self.final_attack().seed == self.trial.attack.seed:
            raise ValueError(
                "final.attack.seed is that of trial.attack: the final attack needs fresh seeds; leave it out"
            )
        return self
