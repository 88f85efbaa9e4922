"""How a trial is called where people compare trials: by its id and by what differs from the sweep's own settings."""

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
"""Names of settings that are searched often."""
UNTRAINED = ("pretrained", "random")
"""References to whose models no setting of training applies."""
MAX_NAME = 60
"""Characters of a run's name, or legends of charts leave it out; what does not fit is among its params."""


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """A short name for each dotted path, different from those of the others; the path where there is none."""
    paths = list(paths)
    weights = [path for path in paths if path.startswith(BLOCKING)]
    short = SHORT | {path: _term(path) if len(weights) > 1 else "weight" for path in weights}
    names = {path: short.get(path) or _leaf(path) for path in paths}
    count = Counter(names.values())
    return {path: name if count[name] == 1 else path for path, name in names.items()}


def run_name(settings: SweepSettings, entry: Entry) -> str:
    """The id of a trial, and its settings that differ from those of the sweep: `t0005 · weight 3.1 · map 0.003`."""
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
    """A trial's method and the values of what the sweep searches; of a reference those that it is trained with."""
    point, found = entry.point.removesuffix(FINAL), {}
    if point in ordered_references(settings) and entry.method not in UNTRAINED:
        plain = reference_settings(settings, point).model_dump(mode="json")
        found = {path: _value(plain, path) for path in settings.space}
    return {METHOD: entry.method} | found | dict(entry.params)


def _value(values: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted path; None where there is none."""
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _term(path: str) -> str:
    """A blocking term in a word or two."""
    name = path.removeprefix(BLOCKING)
    return (name.removeprefix("harmful_adapted_") or name).replace("_", " ")


def _leaf(path: str) -> str:
    """The last part of a path without what says that it is a number of something."""
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
