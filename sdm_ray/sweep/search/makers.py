"""Optuna's samplers of a sweep, by name and options.

A sweep keeps the options that it began with, in its ledger: a later version may have other defaults, and half a search
by each of two samplers is neither.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from sdm_ray.config import SearchSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.suggest import did_you_mean

CLASSES = {
    "tpe": "TPESampler", "nsga2": "NSGAIISampler", "nsga3": "NSGAIIISampler", "gp": "GPSampler", "qmc": "QMCSampler",
    "random": "RandomSampler",
}  # fmt: skip
"""Names in `optuna.samplers` by `search.sampler`."""
DEFAULTS: dict[str, dict[str, Any]] = {"tpe": {"multivariate": True, "group": True}}
"""What a sampler is given where `search.sampler_options` does not say. TPE models searched settings together (Falkner
et al., arXiv 1807.01774), those of each branch of a conditional space by themselves."""
ELSEWHERE = {"seed": "seed", "n_startup_trials": "search.num_startup_trials"}
"""Options that settings of their own give."""
_PLAIN: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


def sampler_options(search: SearchSettings) -> dict[str, Any]:
    """The options of a sweep that begins: its own, and defaults."""
    defaults, own = DEFAULTS.get(search.sampler, {}), options_of_before(search)
    if not own.get("multivariate", True):  # which groups presuppose
        defaults = {}
    return defaults | own


def options_of_before(search: SearchSettings) -> dict[str, Any]:
    """The options of a sweep that began before they were recorded.

    A genetic search has a population of a quarter of the trials (4 to 50), so that a short one has generations at all.
    """
    population = {"population_size": min(50, max(4, search.num_trials // 4))}
    fixed: dict[str, dict[str, Any]] = {"nsga2": population, "nsga3": population, "qmc": {"scramble": True}}
    return fixed.get(search.sampler, {}) | search.sampler_options


def check_options(search: SearchSettings) -> None:
    """Refuse options that the sampler does not take.

    Raises:
        UsageError: naming the option, its value, and what there is.
    """
    if not search.sampler_options:
        return
    where, known = "search.sampler_options", _known(search.sampler)
    for name, value in search.sampler_options.items():
        if name in ELSEWHERE:
            raise UsageError(f"{where}: {name} is set by {ELSEWHERE[name]}; leave it out here")
        if name not in known:
            question = did_you_mean(name, known)
            hint = f"; {question}" if question else ""
            there = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UsageError(f"{where}: the sampler {search.sampler!r} has no option {name!r}, {there}{hint}")
        if not _fits(value, known[name]):
            raise UsageError(f"{where}.{name}: got {value!r}, should be {' or '.join(known[name])}")
    try:
        make(search.sampler, sampler_options(search), seed=0, num_startup_trials=search.num_startup_trials)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{where}: {search.sampler!r} refuses {search.sampler_options}: {reason}") from None


def make(sampler: str, options: Mapping[str, Any], *, seed: int, num_startup_trials: int) -> Any:
    """Optuna's sampler of a name (`optuna.samplers.BaseSampler`).

    Raises:
        Exception: of whatever kind Optuna raises for options that it refuses.
    """
    import optuna

    kind = getattr(optuna.samplers, CLASSES[sampler])
    start = {"n_startup_trials": num_startup_trials} if sampler in ("tpe", "gp") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(seed=seed, **start, **options)


def _known(sampler: str) -> dict[str, tuple[str, ...]]:
    """Options of a sampler whose values a settings file can hold, to the types that they may have."""
    import optuna

    found = {}
    for name, parameter in inspect.signature(getattr(optuna.samplers, CLASSES[sampler])).parameters.items():
        kinds = [kind.strip() for kind in str(parameter.annotation).split("|")]
        plain = tuple(kind for kind in kinds if kind in _PLAIN)
        if plain and len(plain) + kinds.count("None") == len(kinds) and name not in ELSEWHERE:
            found[name] = (*plain, *(["null"] if "None" in kinds else []))
    return found


def _fits(value: Any, kinds: tuple[str, ...]) -> bool:
    if value is None:
        return "null" in kinds
    if isinstance(value, bool):
        return "bool" in kinds
    return any(isinstance(value, _PLAIN[kind]) for kind in kinds if kind in _PLAIN and kind != "bool")
