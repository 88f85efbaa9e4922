"""The search space: settings by dotted path, checked before anything starts, sampled through Optuna.

A categorical choice that Optuna's storage cannot hold as it is (a list, a mapping, two choices that compare equal) is
stored as its index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdm_ray.config import Method, SweepSettings, TrialSettings, check_path, override
from sdm_ray.config.sweep import CategoricalDistribution, Distribution
from sdm_ray.errors import UsageError
from sdm_ray.types import Metric

if TYPE_CHECKING:
    import optuna

INTERIOR = 1 - 2 / (1 + math.sqrt(5))
"""Where between its bounds a range is probed, so that a real range over a whole-number setting is found out."""

NOT_SEARCHABLE = {
    "name": "it is only a name",
    "runtime": "it does not change a result; set it under trial.runtime",
    "origin": "it is only a note",
}


class Space:
    """The settings that vary, in the order of the sweep file."""

    def __init__(self, distributions: Mapping[str, Distribution]) -> None:
        self.distributions = dict(distributions)

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """Values by dotted path (define-by-run: a sampler may see a subset)."""
        return {path: self._suggest(trial, path) for path in self.distributions}

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
    if not settings.space:
        raise UsageError("space is empty, so every trial would be the same; name at least one setting of trial")
    for path in settings.space:
        _check_searchable(path, settings.space)
    for path, distribution in settings.space.items():
        _check_values(settings, path, distribution)
    space = Space(settings.space)
    for point in settings.search.points:
        space.encode(point)
    known = known_metrics(settings.trial)
    for objective in settings.objectives:
        if objective.metric not in known:
            raise UsageError(f"objectives: unknown metric {objective.metric!r}; there are {', '.join(known)}")
    _check_references(settings)
    if settings.resources.gpus_per_trial == 0 and settings.trial.runtime.device.startswith("cuda"):
        raise UsageError(
            f"trial.runtime.device is {settings.trial.runtime.device!r} but resources.gpus_per_trial is 0, which hides "
            "the GPUs from a trial; set resources.gpus_per_trial=1 (or a fraction)"
        )


def known_metrics(trial: TrialSettings) -> list[str]:
    """Names of the metrics that a trial with these settings reports."""
    sizes = [size for size in trial.attack.num_examples if isinstance(size, int)]
    named = (Metric.harmful_accuracy, Metric.harmful_loss, Metric.regret)
    return [str(metric) for metric in Metric] + [name(size) for size in sizes for name in named]


def ordered_references(settings: SweepSettings) -> list[Method]:
    """The reference methods, `tuned` first, because feasibility is relative to it."""
    return sorted(dict.fromkeys(settings.references), key=lambda method: method != "tuned")


def _check_references(settings: SweepSettings) -> None:
    if settings.search.max_desired_drop is not None and "tuned" not in settings.references:
        raise UsageError("search.max_desired_drop is relative to the tuned model: add 'tuned' to references")
    for method in settings.references:
        try:
            settings.trial.train.for_method(method)
        except ValueError as error:
            raise UsageError(f"references: {method} cannot be trained with these settings: {error}") from None


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


def _check_values(settings: SweepSettings, path: str, distribution: Distribution) -> None:
    """Each end (each choice) must be valid together with some values of the other searched settings."""
    for value in _probes(path, distribution):
        problem: UsageError | None = None
        for others in _contexts(settings.space):
            try:
                override(settings.trial, {**others, path: value})
            except UsageError as error:
                problem = problem or error
            else:
                break
        else:
            raise UsageError(f"space: {path} = {value!r} is not allowed: {problem}")


def _contexts(space: Mapping[str, Distribution]) -> Iterator[dict[str, Any]]:
    yield {}
    for end in (0, -1):
        yield {path: _ends(distribution)[end] for path, distribution in space.items()}


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
