"""Names of trials for comparison: the id, and the settings that differ from those of the sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sdm_ray.config import SweepSettings
from sdm_ray.core.result import FINAL
from sdm_ray.sweep.search.models import ordered_references, reference_settings
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.tracking.naming import SEPARATOR

METHOD = "train.method"
BLOCKING = "train.blocking."
SHORT = {
    "train.learning_rate": "rate",
    "train.head_learning_rate": "head rate",
    "train.adversary_learning_rate": "adversary rate",
    "train.embedding_map_learning_rate": "map",
}
"""Short names of settings that are often searched."""
UNTRAINED = ("pretrained", "random")
"""References whose models are not trained, so that no training setting applies."""
MAX_NAME = 60
"""Maximum length of a run's name; chart legends omit longer ones. Settings that do not fit are in the run's params."""


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Unique short name for each dotted path; the path itself if its short name is not unique."""
    paths = list(paths)
    weights = [path for path in paths if path.startswith(BLOCKING)]
    short = SHORT | {path: _term(path) if len(weights) > 1 else "weight" for path in weights}
    names = {path: short.get(path) or _leaf(path) for path in paths}
    count = Counter(names.values())
    return {path: name if count[name] == 1 else path for path, name in names.items()}


def run_name(settings: SweepSettings, entry: Entry) -> str:
    """Id of a trial with the settings that differ from those of the sweep: `t0005 · weight 3.1 · map 0.003`."""
    plain = settings.trial.model_dump(mode="json")
    names = short_names(dict.fromkeys([*settings.space, *entry.params]))
    parts = [entry.trial_id]
    for path, name in names.items():
        if path in entry.params and entry.params[path] != _value(plain, path):
            parts.append(f"{name} {_shown(entry.params[path])}")
    while len(parts) > 1 and len(SEPARATOR.join(parts)) > MAX_NAME:
        parts.pop()
    return SEPARATOR.join(parts)


def run_params(settings: SweepSettings, entry: Entry) -> dict[str, Any]:
    """Method of a trial and the values of the searched settings, also for references, which have fixed values."""
    point, found = entry.point.removesuffix(FINAL), {}
    if point in ordered_references(settings) and entry.method not in UNTRAINED:
        plain = reference_settings(settings, point).model_dump(mode="json")
        found = {path: _value(plain, path) for path in settings.space}
    return {METHOD: entry.method} | found | dict(entry.params)


def _value(values: Mapping[str, Any], path: str) -> Any:
    """Value at a dotted path; None if there is none."""
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _term(path: str) -> str:
    """Short name of a blocking term."""
    name = path.removeprefix(BLOCKING)
    return (name.removeprefix("harmful_adapted_") or name).replace("_", " ")


def _leaf(path: str) -> str:
    """Last part of a path, without prefixes and suffixes that mark numbers (such as `num_` and `_steps`)."""
    leaf = path.rpartition(".")[2].removeprefix("num_")
    for ending in ("_learning_rate", "_steps", "_size"):
        leaf = leaf.removesuffix(ending)
    return leaf.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def trial_tags(entry: Entry) -> dict[str, Any]:
    """Tags of a trial's run in the tracker: its method, role, params, point and seed."""
    tags: dict[str, Any] = {"method": entry.method, "role": entry.role, "params": entry.params}
    tags |= {"point": entry.point, "seed_index": entry.seed_index}
    return tags if entry.number is None else tags | {"optuna_trial": entry.number}
