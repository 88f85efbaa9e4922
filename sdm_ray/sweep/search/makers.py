"""Creates Optuna samplers from their names and options.

The ledger records the options with which a sweep began, and a resumed sweep uses them again, so that it does not switch
to the changed defaults of a later version.
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
"""Class names in `optuna.samplers`, by `search.sampler`."""
DEFAULTS: dict[str, dict[str, Any]] = {"tpe": {"multivariate": True, "group": True}}
"""Default options, which `search.sampler_options` overrides. TPE models searched settings jointly (Falkner et al.,
arXiv 1807.01774), separately for each branch of a conditional space."""
ELSEWHERE = {"seed": "seed", "n_startup_trials": "search.num_startup_trials"}
"""Options that are set by other settings."""
_PLAIN: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


def sampler_options(search: SearchSettings) -> dict[str, Any]:
    """Sampler options of a new sweep: its own, with defaults for the rest."""
    defaults, own = DEFAULTS.get(search.sampler, {}), options_of_before(search)
    if not own.get("multivariate", True):  # `group` requires `multivariate`
        defaults = {}
    return defaults | own


def options_of_before(search: SearchSettings) -> dict[str, Any]:
    """Sampler options of a sweep that began before options were recorded.

    For NSGA-II and NSGA-III the population is a quarter of the trials (4 to 50), so that a short search has several
    generations.
    """
    population = {"population_size": min(50, max(4, search.num_trials // 4))}
    fixed: dict[str, dict[str, Any]] = {"nsga2": population, "nsga3": population, "qmc": {"scramble": True}}
    return fixed.get(search.sampler, {}) | search.sampler_options


def check_options(search: SearchSettings) -> None:
    """Reject options that the sampler does not accept.

    Raises:
        UsageError: with the option, its value, and the known options.
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
    """Create an Optuna sampler (`optuna.samplers.BaseSampler`) by name.

    Raises:
        Exception: any exception of Optuna's for options that it rejects.
    """
    import optuna

    kind = getattr(optuna.samplers, CLASSES[sampler])
    start = {"n_startup_trials": num_startup_trials} if sampler in ("tpe", "gp") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(seed=seed, **start, **options)


def _known(sampler: str) -> dict[str, tuple[str, ...]]:
    """Allowed types of each option of a sampler, for options whose values can be written in a settings file."""
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
