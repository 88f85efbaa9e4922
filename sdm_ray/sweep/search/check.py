"""Checks a sweep before anything starts: references, searched settings, conditions, values."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdm_ray.config import SweepSettings, TrialSettings, check_path, override
from sdm_ray.config.attack import FAMILIES
from sdm_ray.config.space import CategoricalDistribution, Distribution, on_grid
from sdm_ray.core.errors import Faults, UsageError
from sdm_ray.core.metric_names import OWN_METRICS, Metric
from sdm_ray.core.suggest import did_you_mean
from sdm_ray.data.sources import benign_columns
from sdm_ray.sweep.search.makers import check_options
from sdm_ray.sweep.search.models import first_points, ordered_references, reference_settings
from sdm_ray.sweep.search.space import Space, _same

INTERIOR = 1 - 2 / (1 + math.sqrt(5))
"""Relative position of an interior test value of a range; irrational, so that a real range over an integer setting
fails."""

OWN_TERMS = "train.blocking.custom."
NOT_SEARCHABLE = {
    "name": "it is only a name",
    "modules": "all trials load the same",
    "runtime": "it does not change a result; set it under trial.runtime",
    "origin": "it is only a note",
}
NOT_VARIED = dict.fromkeys(("data", "attack", "rungs"), "all models of a sweep face the same; set it under trial") | {
    "seed": "search.num_seeds sets it"
}
"""Settings that a variant must not change, with the reason."""


def check_sweep(settings: SweepSettings) -> None:
    """Reject a sweep that could not run or whose results would be meaningless, before anything starts.

    Raises:
        UsageError: with the dotted path, the value and the rule.
    """
    faults = Faults()
    if settings.search.num_trials and not settings.space:
        faults.add("space is empty, so every trial would be the same; name at least one setting of trial")
    searchable = [faults.check(_check_searchable, path, settings.space) for path in settings.space]
    if all(searchable) and faults.check(_check_conditions, settings.space):
        for path, distribution in settings.space.items():
            faults.check(_check_values, settings, path, distribution)
        faults.check(_check_points, settings)
    faults.check(_check_own_terms, settings)
    faults.check(check_options, settings.search)
    known = known_metrics(settings.trial)
    for objective in settings.objectives:
        if objective.metric not in known:
            hint = " ".join([did_you_mean(objective.metric, known), f"there are {', '.join(known)}"]).strip()
            faults.add(f"objectives: unknown metric {objective.metric!r}; {hint}")
    for metric, count in Counter(objective.metric for objective in settings.objectives).items():
        if count > 1:
            faults.add(f"objectives: metric {metric!r} stands there {count} times; drop all but one")
    faults.add(*unknown_families(settings))
    faults.check(_check_references, settings)
    if settings.search.num_seeds > 1 and "seed" in settings.space:
        faults.add("space: seed cannot be searched while search.num_seeds sets it; drop one of them")
    faults.check(_check_device, settings)
    faults.refuse()


def unknown_families(settings: SweepSettings) -> list[str]:
    """Messages for unknown attack families. Families that the running program has registered are known."""
    registry = sys.modules.get("sdm_ray.attack.families")  # not imported here, to avoid importing torch
    known = FAMILIES if registry is None else tuple(registry.FAMILIES)
    trial = settings.trial
    attacks = [trial.attack, *(trial.rung_attack(index) for index in range(len(trial.rungs)))]
    attacks += [] if settings.final is None else [settings.final_attack()]
    named = dict.fromkeys(name for attack in attacks for name in (*attack.families, *attack.benign_families))
    return [
        f"attack.families: {name!r} is not known; " + did_you_mean(name, known, otherwise=f"known: {', '.join(known)}")
        for name in named
        if name not in known
    ]


def _check_points(settings: SweepSettings) -> None:
    space = Space(settings.space)
    for point in first_points(settings):
        space.encode(point)


def _check_device(settings: SweepSettings) -> None:
    if settings.resources.gpus_per_trial == 0 and settings.trial.runtime.device.startswith("cuda"):
        raise UsageError(
            f"trial.runtime.device is {settings.trial.runtime.device!r} but resources.gpus_per_trial is 0, which hides "
            "the GPUs from a trial; set resources.gpus_per_trial=1 (or a fraction)"
        )


def known_metrics(trial: TrialSettings) -> list[str]:
    """Names of the metrics that a trial with these settings can report."""
    attack = trial.attack
    sizes = [size for size in attack.num_examples if isinstance(size, int)]
    named = (
        Metric.harmful_accuracy, Metric.harmful_loss, Metric.regret, Metric.harmful_f1, Metric.harmful_information,
        Metric.utility, Metric.recovered_share, Metric.regret_accuracy,
    )  # fmt: skip
    names = [str(metric) for metric in Metric] + [name(size) for size in sizes for name in named]
    names += [Metric.kept_at("harmful", size) for size in sizes]
    benign_sizes = [size for size in attack.benign_num_examples if isinstance(size, int)]
    tasks = ("desired", "grouped", "held_out", *benign_columns(trial.data)) if attack.benign_num_examples else ()
    names += [Metric.benign(task, size) for task in tasks for size in benign_sizes]
    return [*names, *(Metric.kept_benign(task) for task in tasks), *OWN_METRICS]


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


def _check_own_terms(settings: SweepSettings) -> None:
    """Reject searched weights of custom blocking terms that no module registers."""
    names = [path.removeprefix(OWN_TERMS) for path in settings.space if path.startswith(OWN_TERMS)]
    if names:
        from sdm_ray.meta.objectives import load_terms

        load_terms(settings.trial.train.term_modules, names)


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
    inside = type(value) is int and distribution.low <= value <= distribution.high
    return inside and on_grid(value, distribution.low, distribution.step)


def _check_values(settings: SweepSettings, path: str, distribution: Distribution) -> None:
    """Check that each bound or choice is valid together with some values of the other searched settings."""
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
    """Yield values of other searched settings that make a setting active."""
    needed = _activating(space, path)
    yield needed
    for end in (0, -1):
        ends = {other: _ends(distribution)[end] for other, distribution in space.items()} | needed
        yield Space(space).active(ends)


def _activating(space: Mapping[str, Distribution], path: str) -> dict[str, Any]:
    """Values of a setting's parents with which it is active."""
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
    inner = low + INTERIOR * (high - low) if distribution.step is None else low + distribution.step
    return (low, high) if low == high else (low, high, inner)
