"""Settings of a sweep: search, final stage, resources and tracking."""

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
"""Valid names of variants: they differ from the sweep's own trial names and are valid folder names."""


class Objective(Settings):
    """A metric that the sweep optimises."""

    metric: str
    """Name of a trial metric."""
    direction: Literal["maximize", "minimize"]
    """Direction of improvement."""


Sampler = Literal["tpe", "nsga2", "nsga3", "gp", "qmc", "random"]
KnownPoint = Literal["paper", "paper_variant"]


class StoppingSettings(Settings):
    """Rules that stop a trial at a rung. A weak attack so far is never a reason, and references are never stopped."""

    infeasible_slack: NonNegativeFloat | None = 0.05
    """Stop a trial whose desired accuracy is more than `search.max_desired_drop` plus this below that of the tuned
    reference at the same rung; None never does."""
    broken: bool = True
    """Stop a trial if the attack's harmful accuracy is at least that on the tuned reference at the same rung."""
    dominated_share: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Stop a trial if at least this fraction of the trials that reached the same rung earlier dominate it; None never
    does."""
    min_peers: PositiveInt = 4
    """Number of trials that must have reached a rung before a trial is stopped as dominated."""


class SearchSettings(Settings):
    """The Optuna search."""

    LATER: ClassVar[frozenset[str]] = frozenset({"sampler_options"})

    num_trials: NonNegativeInt = 16
    """Number of search points, without references; each is one trial per seed. With 0 only references are run."""
    num_seeds: PositiveInt = 1
    """Number of training seeds of every point and reference: `trial.seed` and the following ones. Each seed's model is
    attacked with its own subsets, batch orders and heads. Search and frontier use means over seeds, with 95 %
    intervals."""
    max_hours: PositiveFloat | None = None
    """Wall-clock hours, including earlier runs of the sweep, after which no new point is started. Running trials and
    the final stage are still completed."""
    max_gpu_hours: PositiveFloat | None = None
    """The same limit in GPU hours occupied by trials."""
    sampler: Sampler = "tpe"
    """Optuna's sampler. `gp` takes seconds per trial and samples conditional settings at random; `qmc` and `random` do
    not learn from results."""
    sampler_options: dict[str, Any] = {}
    """Further arguments of Optuna's sampler, such as `n_ei_candidates` of `tpe`, whose defaults here are `multivariate`
    and `group`. A sweep keeps the defaults with which it was started."""
    num_startup_trials: PositiveInt = 8
    """Random points before TPE or the Gaussian process fits a model."""
    points: tuple[dict[str, Any], ...] = ()
    """Points (value by dotted path) to try first; settings that a point does not give are sampled."""
    known_points: tuple[KnownPoint, ...] = ()
    """Published settings to try after `points`, restricted to the settings in `space`."""
    warm_start: str | None = None
    """An earlier sweep, by its folder or its name below `output_dir`. Its results are given to the sampler if
    everything but the search was equal, so that nothing is trained twice. They are not points of this sweep's
    frontier."""
    max_desired_drop: Probability | None = None
    """A trial is feasible only if its desired accuracy is at most this far below the tuned reference's; None for no
    limit."""
    stopping: StoppingSettings = StoppingSettings()
    """Rules that stop trials at `trial.rungs`."""
    require_audit: bool = True
    """Count a trial as feasible only if it passes the audit. If false, the sampler treats a trial that fails the audit
    as complete, but it is still left out of the frontier."""


class FinalSettings(Settings):
    """The last stage of a sweep: attack the best points and the references again, then name the winners."""

    num_points: PositiveInt = 3
    """Number of points of the front that are attacked again, chosen greedily by joint hypervolume."""
    attack: dict[str, Any] = {}
    """Changes to `trial.attack`; a `preset` replaces its families and budget. Without changes, the final attack has
    twice as many search points and re-runs. Its seeds are always new."""


class ResourceSettings(Settings):
    """Resources of a trial on the Ray cluster."""

    LATER: ClassVar[frozenset[str]] = frozenset({"max_kills"})

    cpus_per_trial: PositiveFloat = 1.0
    """Ray CPUs per trial."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """Ray GPUs per trial; fractions are allowed."""
    max_concurrent_trials: PositiveInt | None = None
    """Most trials that run at once; None for as many as fit."""
    max_failures: NonNegativeInt = 2
    """Number of times that a trial is restarted from its checkpoint after its process died."""
    max_kills: PositiveInt = 3
    """Number of drivers that may give up a searched trial because its process was ended from outside (node out of
    memory, killed, node lost) before `--resume` leaves it out; `--retry-infrastructure` repeats it."""
    max_silent_seconds: PositiveFloat | None = 7200.0
    """Seconds without progress after which a trial's process counts as hung: it is killed and restarted like one that
    died. None for no limit."""
    ray_address: str | None = None
    """Address of a running Ray cluster (`auto` finds it), or `local` to start one for this sweep, on loopback only.
    None uses the cluster of the Ray job in which the sweep runs, else `RAY_ADDRESS`, else `local`."""


class TrackingSettings(Settings):
    """Tracking with MLflow."""

    LATER: ClassVar[frozenset[str]] = frozenset({"tags"})
    MEANT: ClassVar[dict[str, dict[Any, Any]]] = {"experiment": {None: "sdm-ray"}}

    enabled: bool = True
    """Log to MLflow."""
    uri: str | None = None
    """Tracking URI. None uses `MLFLOW_TRACKING_URI`, else `mlflow.db` in `output_dir`, which all sweeps in that folder
    share (with `storage_path`: `mlflow.db` in the sweep's own folder, which is copied). A resumed sweep keeps the
    address with which it was started."""
    experiment: str | None = None
    """MLflow experiment. None uses `MLFLOW_EXPERIMENT_NAME`, else `sdm-ray`."""
    tags: dict[str, str] = {}
    """Tags of every run, besides those of `MLFLOW_RUN_CONTEXT`."""
    log_models: bool = False
    """Upload every released model (with weights) to its run, so that it can be attacked and registered from there."""
    system_metrics: bool = False
    """Log CPU, memory, disk and GPU usage of the driver's machine to the sweep's run."""


class SweepSettings(Settings):
    """A sweep: settings of a trial, the settings that are searched, and settings of the search."""

    name: str = "sweep"
    """Name of the sweep and of its folder."""
    seed: Seed = 0
    """Seed of the search."""
    output_dir: str = "runs"
    """Parent folder of the sweep's folder."""
    trial: TrialSettings = TrialSettings()
    """Base settings of every trial."""
    space: dict[str, Distribution] = {}
    """Searched settings: distribution by dotted path within `trial`."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (
        Objective(metric=str(Metric.DESIRED_ACCURACY), direction="maximize"),
        Objective(metric=str(Metric.HARMFUL_WORST_ACCURACY), direction="minimize"),
    )
    """Objectives. Pareto dominance on the frontier uses all of them; the figure shows the first of each direction."""
    references: tuple[Method, ...] = ("pretrained", "random", "scratch", "tuned", "ac")
    """Methods that are trained and attacked with the same budget and shown beside the frontier."""
    variants: dict[str, dict[str, Any]] = {}
    """Further references by name: changes to `trial` by dotted path, such as `{mlac-k4: {train.adversary.num_steps:
    4}}`."""
    search: SearchSettings = SearchSettings()
    """The search."""
    final: FinalSettings | None = None
    """A final, stronger attack on the best points; None makes the attack of the search the final one."""
    resources: ResourceSettings = ResourceSettings()
    """Resources."""
    storage: str | None = None
    """Optuna storage: `journal:///path` or an SQLAlchemy URL; None for an SQLite file in the sweep's folder."""
    storage_path: str | None = None
    """Folder that all nodes can reach (`s3://`, `gs://`, `file://` or another pyarrow file system), to which the sweep
    and its trials copy their folders; None if all nodes share `output_dir`."""
    tracking: TrackingSettings = TrackingSettings()
    """Tracking."""

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
        """Move `modules` from the top level of a sweep file to `trial`, because trials import them."""
        if not isinstance(values, dict) or "modules" not in values:
            return values
        rest = {name: value for name, value in values.items() if name != "modules"}
        trial = rest.get("trial", {})
        trial = trial.model_dump() if isinstance(trial, TrialSettings) else trial
        if not isinstance(trial, dict):
            return rest
        modules = values["modules"]
        with suppress(ValueError):  # `TrialSettings` raises it again, with the path
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
