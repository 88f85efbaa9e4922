"""The search space: settings by dotted path, checked before anything starts, sampled through Optuna.

A categorical choice that Optuna's storage cannot hold as it is (a list, a mapping, two choices that compare equal) is
stored as its index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdm_ray.config import Method, SweepSettings, TrialSettings, check_path, override
from sdm_ray.config.space import CategoricalDistribution, Distribution
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric

if TYPE_CHECKING:
    import optuna

INTERIOR = 1 - 2 / (1 + math.sqrt(5))
"""Where between its bounds a range is probed, so that a real range over a whole-number setting is found out."""

NOT_SEARCHABLE = {
    "name": "it is only a name",
    "runtime": "it does not change a result; set it under trial.runtime",
    "origin": "it is only a note",
}
NOT_VARIED = dict.fromkeys(("data", "attack", "rungs"), "all models of a sweep face the same; set it under trial") | {
    "seed": "search.num_seeds sets it"
}
"""What a variant must leave as it is, with the reason."""


_PAPER: dict[str, Any] = {
    "train.method": "mlac",
    "train.blocking.harmful_adapted_calibrated": 1.0,
    "train.learning_rate": 1e-5,
    "train.num_outer_steps": 50_000,
    "train.desired_batch_size": 20,
    "train.harmful_batch_size": 20,
    "train.gradient_clip": 10.0,
    "train.adversary.num_steps": 16,
    "train.adversary.optimizers": ["adam"],
    "train.adversary.learning_rate_mode": "meta_learned",
    "train.adversary.learning_rate_initial": 3e-4,
    "train.adversary.batch_sizes": [8, 16, 24],
    "train.adversary.gradient_clip": 100.0,
    "train.adversary.pool.size": 0,
}
KNOWN_POINTS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "paper_variant": _PAPER | {"train.learning_rate": 1e-4, "train.adversary.batch_sizes": [12, 24, 48]},
}
"""Settings of Henderson et al., arXiv 2211.14946: their best variant (calibrated, weight 1, K = 16), and the one with a
larger outer learning rate and larger inner batches."""


class Space:
    """The settings that vary, in the order of the sweep file."""

    def __init__(self, distributions: Mapping[str, Distribution]) -> None:
        self.distributions = dict(distributions)

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """Values by dotted path, of a conditional setting only where it is active (define-by-run)."""
        values: dict[str, Any] = {}
        for path in self._parents_first():
            if self.is_active(path, values):
                values[path] = self._suggest(trial, path)
        return {path: values[path] for path in self.distributions if path in values}

    def is_active(self, path: str, values: Mapping[str, Any]) -> bool:
        """Whether a setting is searched beside these values of those that it depends on."""
        return all(
            parent in values and any(_same(choice, values[parent]) for choice in wanted)
            for parent, wanted in self.distributions[path].when.items()
        )

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of these values those of active settings."""
        kept: dict[str, Any] = {}
        for path in self._parents_first():
            if path in values and self.is_active(path, kept):
                kept[path] = values[path]
        return kept

    def stored(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The distributions as Optuna stores them."""
        from optuna.distributions import CategoricalDistribution as Categorical
        from optuna.distributions import FloatDistribution, IntDistribution

        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for path, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                choices = distribution.choices
                found[path] = Categorical(range(len(choices)) if stored_by_index(choices) else choices)
            else:
                kind: Any = IntDistribution if distribution.type == "int" else FloatDistribution
                found[path] = kind(distribution.low, distribution.high, log=distribution.log)
        return found

    def _parents_first(self) -> Iterator[str]:
        """Every setting after those that it depends on.

        Raises:
            UsageError: when settings depend on each other in a circle.
        """
        done: set[str] = set()
        while len(done) < len(self.distributions):
            ready = [
                path
                for path, distribution in self.distributions.items()
                if path not in done and not (distribution.when.keys() & self.distributions.keys()) - done
            ]
            if not ready:
                circle = ", ".join(path for path in self.distributions if path not in done)
                raise UsageError(f"space: {circle} depend on each other in a circle; drop one `when`")
            done.update(ready)
            yield from ready

    def encode(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point as Optuna stores it; what the point leaves out stays out.

        Raises:
            UsageError: when it names a setting outside the space or a value outside its distribution.
        """
        return {path: self._encode(path, value) for path, value in point.items()}

    def _suggest(self, trial: optuna.trial.Trial, path: str) -> Any:
        distribution = self.distributions[path]
        if isinstance(distribution, CategoricalDistribution):
            if stored_by_index(distribution.choices):
                return distribution.choices[trial.suggest_categorical(path, range(len(distribution.choices)))]
            return trial.suggest_categorical(path, distribution.choices)
        if distribution.type == "int":
            return trial.suggest_int(path, distribution.low, distribution.high, log=distribution.log)
        return trial.suggest_float(path, distribution.low, distribution.high, log=distribution.log)

    def _encode(self, path: str, value: Any) -> Any:
        distribution = self.distributions.get(path)
        if distribution is None:
            raise UsageError(f"search.points names {path!r}, which the space does not search; add it to space")
        if isinstance(distribution, CategoricalDistribution):
            for index, choice in enumerate(distribution.choices):
                if _same(choice, value):
                    return index if stored_by_index(distribution.choices) else choice
            raise UsageError(f"search.points: {path} = {value!r} is none of the choices {list(distribution.choices)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not distribution.low <= value <= distribution.high:
            raise UsageError(
                f"search.points: {path} = {value!r} must lie in [{distribution.low:g}, {distribution.high:g}]"
            )
        if distribution.type == "int" and value != int(value):
            raise UsageError(f"search.points: {path} = {value!r} must be a whole number")
        return int(value) if distribution.type == "int" else float(value)


def stored_by_index(choices: Sequence[Any]) -> bool:
    """Whether Optuna gets indices in place of these choices."""
    scalar = all(isinstance(choice, str | int | float | bool | None) for choice in choices)
    return not scalar or len(set(choices)) < len(choices)


def check_sweep(settings: SweepSettings) -> None:
    """Refuse a sweep that could not run or would mean nothing, before anything starts.

    Raises:
        UsageError: naming the dotted path, the value and the rule.
    """
    if settings.search.num_trials and not settings.space:
        raise UsageError("space is empty, so every trial would be the same; name at least one setting of trial")
    for path in settings.space:
        _check_searchable(path, settings.space)
    _check_conditions(settings.space)
    for path, distribution in settings.space.items():
        _check_values(settings, path, distribution)
    space = Space(settings.space)
    for point in first_points(settings):
        space.encode(point)
    known = known_metrics(settings.trial)
    for objective in settings.objectives:
        if objective.metric not in known:
            raise UsageError(f"objectives: unknown metric {objective.metric!r}; there are {', '.join(known)}")
    _check_references(settings)
    if settings.search.num_seeds > 1 and "seed" in settings.space:
        raise UsageError("space: seed cannot be searched while search.num_seeds sets it; drop one of them")
    if settings.resources.gpus_per_trial == 0 and settings.trial.runtime.device.startswith("cuda"):
        raise UsageError(
            f"trial.runtime.device is {settings.trial.runtime.device!r} but resources.gpus_per_trial is 0, which hides "
            "the GPUs from a trial; set resources.gpus_per_trial=1 (or a fraction)"
        )


def first_points(settings: SweepSettings) -> list[dict[str, Any]]:
    """The points that are tried before any is sampled: those of the file, then published ones.

    Raises:
        UsageError: for a published point of which the space searches nothing.
    """
    points = [dict(point) for point in settings.search.points]
    for name in settings.search.known_points:
        point = {path: value for path, value in KNOWN_POINTS[name].items() if path in settings.space}
        if not point:
            raise UsageError(
                f"search.known_points: the space searches nothing of {name!r}, which sets "
                f"{', '.join(KNOWN_POINTS[name])}; leave it out"
            )
        points.append(point)
    return points


def axes(settings: SweepSettings) -> dict[str, Any]:
    """What `frontier.point_from_result` draws and compares: the first objective of each direction, and the others."""
    up = [objective.metric for objective in settings.objectives if objective.direction == "maximize"]
    down = [objective.metric for objective in settings.objectives if objective.direction == "minimize"]
    further = dict.fromkeys(up[1:], -1.0) | dict.fromkeys(down[1:], 1.0)
    drawn = {"desired_metric": (up or [str(Metric.DESIRED_ACCURACY)])[0]}
    drawn["harmful_metric"] = (down or [str(Metric.HARMFUL_WORST_ACCURACY)])[0]
    return {**drawn, "further": further}


def known_metrics(trial: TrialSettings) -> list[str]:
    """Names of the metrics that a trial with these settings reports."""
    sizes = [size for size in trial.attack.num_examples if isinstance(size, int)]
    named = (Metric.harmful_accuracy, Metric.harmful_loss, Metric.regret)
    return [str(metric) for metric in Metric] + [name(size) for size in sizes for name in named]


def ordered_references(settings: SweepSettings) -> list[str]:
    """The reference methods, `tuned` first, because feasibility is relative to it; then the variants."""
    return [*sorted(dict.fromkeys(settings.references), key=lambda method: method != "tuned"), *settings.variants]


def reference_settings(settings: SweepSettings, name: str) -> TrialSettings:
    """The settings of a reference, by the name of its method or variant.

    Raises:
        UsageError: for a variant that cannot be trained so.
        ValueError: for a method that cannot.
    """
    if name in settings.variants:
        return override(settings.trial, settings.variants[name])
    method: Method = name  # type: ignore[assignment]
    return settings.trial.model_copy(update={"train": settings.trial.train.for_method(method)})


def _check_references(settings: SweepSettings) -> None:
    if settings.search.max_desired_drop is not None and "tuned" not in settings.references:
        raise UsageError("search.max_desired_drop is relative to the tuned model: add 'tuned' to references")
    if not settings.search.num_trials and not ordered_references(settings):
        raise UsageError("search.num_trials is 0, and references and variants are empty: there is nothing to run")
    for method in settings.references:
        try:
            reference_settings(settings, method)
        except ValueError as error:
            raise UsageError(f"references: {method} cannot be trained with these settings: {error}") from None
    for name, changes in settings.variants.items():
        for path in changes:
            part = path.split(".")[0]
            reason = NOT_SEARCHABLE.get(part) or NOT_VARIED.get(part)
            if reason:
                raise UsageError(f"variants.{name}: {path} cannot be changed: {reason}")
        try:
            reference_settings(settings, name)
        except UsageError as error:
            raise UsageError(f"variants.{name}: {error}") from None


def _check_searchable(path: str, space: Mapping[str, Distribution]) -> None:
    try:
        check_path(TrialSettings, path)
    except UsageError as error:
        raise UsageError(f"space: {error}") from None
    reason = NOT_SEARCHABLE.get(path.split(".")[0])
    if reason:
        raise UsageError(f"space: {path} cannot be searched: {reason}")
    for other in space:
        if other != path and other.startswith(path + "."):
            raise UsageError(f"space: {path} holds {other}; search one of them")


def _check_conditions(space: Mapping[str, Distribution]) -> None:
    for path, distribution in space.items():
        for parent, wanted in distribution.when.items():
            other = space.get(parent)
            if other is None:
                raise UsageError(f"space: {path} depends on {parent}, which the space does not search; add it to space")
            if other.type == "float":
                raise UsageError(f"space: {path} depends on {parent}, a real number; name a categorical or whole one")
            for value in wanted:
                if not _takes(other, value):
                    raise UsageError(f"space: {path} is searched when {parent} = {value!r}, which it never is")
    list(Space(space)._parents_first())


def _takes(distribution: Distribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(_same(choice, value) for choice in distribution.choices)
    return type(value) is int and distribution.low <= value <= distribution.high


def _check_values(settings: SweepSettings, path: str, distribution: Distribution) -> None:
    """Each end (each choice) must be valid together with some values of the other searched settings."""
    for value in _probes(path, distribution):
        problem: UsageError | None = None
        for others in _contexts(settings.space, path):
            try:
                override(settings.trial, {**others, path: value})
            except UsageError as error:
                problem = problem or error
            else:
                break
        else:
            raise UsageError(f"space: {path} = {value!r} is not allowed: {problem}")


def _contexts(space: Mapping[str, Distribution], path: str) -> Iterator[dict[str, Any]]:
    """Values of other settings, among them some that make a setting active."""
    needed = _activating(space, path)
    yield needed
    for end in (0, -1):
        ends = {other: _ends(distribution)[end] for other, distribution in space.items()} | needed
        yield Space(space).active(ends)


def _activating(space: Mapping[str, Distribution], path: str) -> dict[str, Any]:
    """Values with which a setting is searched."""
    needed: dict[str, Any] = {}
    for parent, wanted in space[path].when.items():
        needed |= _activating(space, parent) | {parent: wanted[0]}
    return needed


def _ends(distribution: Distribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return (distribution.low, distribution.high)


def _probes(path: str, distribution: Distribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution) or distribution.type == "int":
        return _ends(distribution)
    low, high = distribution.low, distribution.high
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"space: {path} = [{low}, {high}] must have finite bounds")
    return (low, high) if low == high else (low, high, low + INTERIOR * (high - low))


def _same(choice: Any, value: Any) -> bool:
    if isinstance(choice, bool) != isinstance(value, bool):
        return False
    return bool(choice == value) or (isinstance(choice, list | tuple) and list(choice) == value)
