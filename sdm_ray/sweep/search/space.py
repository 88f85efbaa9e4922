"""Search space of a sweep: distributions by dotted path of a setting, sampled with Optuna.

If Optuna's storage cannot hold categorical choices as they are (a list, a mapping, or choices that compare equal), it
stores their indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdm_ray.config.space import CategoricalDistribution, Distribution, FloatDistribution, IntDistribution, on_grid
from sdm_ray.core.errors import UsageError

if TYPE_CHECKING:
    import optuna


class Space:
    """Searched settings, in the order of the sweep file."""

    def __init__(self, distributions: Mapping[str, Distribution]) -> None:
        self.distributions = dict(distributions)

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """Sample values by dotted path; conditional settings only if they are active (define-by-run)."""
        values: dict[str, Any] = {}
        for path in self._parents_first():
            if self.is_active(path, values):
                values[path] = self._suggest(trial, path)
        return {path: values[path] for path in self.distributions if path in values}

    def is_active(self, path: str, values: Mapping[str, Any]) -> bool:
        """Whether a setting is active, given the values of the settings that it depends on."""
        return all(
            parent in values and any(_same(choice, values[parent]) for choice in wanted)
            for parent, wanted in self.distributions[path].when.items()
        )

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Filter values to those of active settings."""
        kept: dict[str, Any] = {}
        for path in self._parents_first():
            if path in values and self.is_active(path, kept):
                kept[path] = values[path]
        return kept

    def stored(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Distributions as Optuna stores them."""
        from optuna import distributions as kinds

        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for path, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                choices = distribution.choices
                found[path] = kinds.CategoricalDistribution(
                    range(len(choices)) if stored_by_index(choices) else choices
                )
            else:
                kind: Any = kinds.IntDistribution if distribution.type == "int" else kinds.FloatDistribution
                found[path] = kind(distribution.low, distribution.high, **_shape(distribution))
        return found

    def _parents_first(self) -> Iterator[str]:
        """Yield the settings in topological order of their conditions.

        Raises:
            UsageError: if the conditions contain a cycle.
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
        """Convert a (possibly partial) point to the values that Optuna stores.

        Raises:
            UsageError: for a setting that is not searched, or a value outside its distribution.
        """
        return {path: self._encode(path, value) for path, value in point.items()}

    def _suggest(self, trial: optuna.trial.Trial, path: str) -> Any:
        distribution = self.distributions[path]
        if isinstance(distribution, CategoricalDistribution):
            if stored_by_index(distribution.choices):
                return distribution.choices[trial.suggest_categorical(path, range(len(distribution.choices)))]
            return trial.suggest_categorical(path, distribution.choices)
        if distribution.type == "int":
            return trial.suggest_int(path, int(distribution.low), int(distribution.high), **_shape(distribution))
        return trial.suggest_float(path, distribution.low, distribution.high, **_shape(distribution))

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
        if not on_grid(value, distribution.low, distribution.step):
            raise UsageError(
                f"search.points: {path} = {value!r} must be {distribution.low:g} plus whole steps of "
                f"{distribution.step:g}"
            )
        return int(value) if distribution.type == "int" else float(value)


def _shape(distribution: FloatDistribution | IntDistribution) -> dict[str, Any]:
    """Keyword arguments of an Optuna distribution besides its bounds."""
    return {"log": distribution.log} | ({} if distribution.step is None else {"step": distribution.step})


def stored_by_index(choices: Sequence[Any]) -> bool:
    """Whether Optuna stores indices of these choices instead of their values."""
    scalar = all(isinstance(choice, str | int | float | bool | None) for choice in choices)
    return not scalar or len(set(choices)) < len(choices)


def _same(choice: Any, value: Any) -> bool:
    if isinstance(choice, bool) != isinstance(value, bool):
        return False
    return bool(choice == value) or (isinstance(choice, list | tuple) and list(choice) == value)
