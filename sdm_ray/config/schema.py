"""JSON schema of settings files, for editors. It adds what the classes leave open: names and dotted paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_origin

from pydantic import BaseModel

from sdm_ray.config.attack import FAMILIES
from sdm_ray.config.base import Settings
from sdm_ray.config.documents import EXTENDS
from sdm_ray.config.trial import TrialSettings
from sdm_ray.core.metric_names import Metric

NOT_SEARCHED = ("name", "modules", "runtime", "origin")
"""Parts of a trial that cannot be searched (`sweep.search.check` gives the reasons)."""
_ENVIRONMENT, _DISTRIBUTION = "FromEnvironment", "Distribution"
_EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    "description": "A settings file that this one begins from, relative to it, or several, of which later ones count "
    "more. Mappings are merged, everything else replaces.",
}
_MODULES = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": {"type": "string"}},
    ],
    "description": TrialSettings.model_fields["modules"].description,
}


def json_schema(
    kind: type[Settings], *, families: Iterable[str] = FAMILIES, metrics: Iterable[str] = ()
) -> dict[str, Any]:
    """JSON schema for editors (draft 2020-12).

    Args:
        kind: `TrialSettings` or `SweepSettings`.
        families: names of attack families.
        metrics: names of metrics besides those of `Metric`.
    """
    schema = kind.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for name, definition in [(kind.__name__, schema), *definitions.items()]:
        if name in ("AttackSettings", "SearchSettings", "SweepSettings", "Objective", "RungSettings", "FinalSettings"):
            _complete(name, definition["properties"], list(families), list(metrics))
        elif name.endswith(_DISTRIBUTION):
            definition["properties"]["when"]["additionalProperties"] = {}
    if "SearchSettings" in definitions:
        space = schema["properties"]["space"]
        definitions[_DISTRIBUTION] = space["additionalProperties"]
        dropped = {"type": "null", "description": "Drops what an extended file searches."}
        space |= _by_path(lambda pointer: {"anyOf": [{"$ref": f"#/$defs/{_DISTRIBUTION}"}, dropped]})
        for definition in definitions.values():
            if "when" in definition.get("properties", {}):
                definition["properties"]["when"] |= _by_path(lambda pointer: {}) | {"minProperties": 0}
    _let_environment_in(schema)
    definitions[_ENVIRONMENT] = {"type": "string", "pattern": r"^\$\{env:[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}$"}
    for definition in (schema, definitions.get("TrialSettings")):
        if definition is not None:
            definition["properties"] = {EXTENDS: _EXTENDS, **definition["properties"], "modules": _MODULES}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def dotted_paths(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted path, class name, field name) of every setting, sections included."""
    for name, item in kind.model_fields.items():
        yield prefix + name, kind.__name__, name
        inner = item.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from dotted_paths(inner, f"{prefix}{name}.")


def is_open(kind: type[BaseModel], field: str) -> bool:
    """Whether a setting is a mapping with arbitrary keys."""
    return get_origin(kind.model_fields[field].annotation) is dict


def _complete(name: str, properties: dict[str, Any], families: list[str], metrics: list[str]) -> None:
    """Add names and dotted paths to the properties of one class."""
    if name == "AttackSettings":
        for field in ("families", "benign_families"):
            properties[field]["items"] = {"enum": families}
    elif name == "Objective":
        known = [{"enum": [*map(str, Metric), *metrics]}, {"type": "string", "pattern": _metric_pattern()}]
        properties["metric"] = {key: properties["metric"][key] for key in ("description", "title")} | {"anyOf": known}
    elif name in ("RungSettings", "FinalSettings"):
        properties["attack"].pop("additionalProperties")
        properties["attack"]["$ref"] = "#/$defs/AttackSettings"
    elif name == "SearchSettings":
        properties["points"]["items"] |= _by_path(lambda pointer: {"$ref": pointer})
    elif name == "SweepSettings":
        properties["variants"]["additionalProperties"] |= _by_path(lambda pointer: {"$ref": pointer})


def _metric_pattern() -> str:
    """Regular expression for names of metrics that depend on the number of examples n or on a task."""
    at_n = (
        Metric.harmful_accuracy, Metric.harmful_loss, Metric.harmful_f1, Metric.harmful_information,
        Metric.recovered_share, Metric.utility, Metric.regret, Metric.regret_accuracy,
    )  # fmt: skip
    names = [name(0) for name in at_n] + [Metric.kept_at(side, 0) for side in ("harmful", "desired")]
    names += [Metric.benign("TASK", 0), Metric.kept_benign("TASK")]
    patterns = [re.sub("n0(?=/|$)", r"n\\d+", name).replace("TASK", "[^/]+") for name in names]
    return f"^({'|'.join(patterns)})$"


def _by_path(value: Any) -> dict[str, Any]:
    """Schema of an object whose keys are dotted paths below `trial`.

    Args:
        value: function that gives the schema of a path's value, from the pointer to the setting's own schema.
    """
    properties, patterns = {}, {}
    for path, owner, field in dotted_paths(TrialSettings):
        if path.split(".")[0] in NOT_SEARCHED:
            continue
        kind = _CLASSES[owner]
        text = {"description": kind.model_fields[field].description}
        properties[path] = text | value(f"#/$defs/{owner}/properties/{field}")
        if is_open(kind, field):
            patterns[rf"^{re.escape(path)}\.[^.]+$"] = value(f"#/$defs/{owner}/properties/{field}/additionalProperties")
    return {"type": "object", "properties": properties, "patternProperties": patterns, "additionalProperties": False}


def _classes(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {kind.__name__: kind}
    for item in kind.model_fields.values():
        if isinstance(item.annotation, type) and issubclass(item.annotation, BaseModel):
            found |= _classes(item.annotation)
    return found


_CLASSES = _classes(TrialSettings)


def _let_environment_in(node: Any) -> None:
    """Allow `${env:NAME}` wherever a number, a boolean or an enumerated value is expected."""
    if isinstance(node, list):
        for item in node:
            _let_environment_in(item)
        return
    if not isinstance(node, dict):
        return
    for key, item in node.items():
        if key not in ("default", "enum", "const"):
            _let_environment_in(item)
    if node.get("type") in ("integer", "number", "boolean") or ("enum" in node and "anyOf" not in node):
        kept = {key: node.pop(key) for key in list(node) if key not in ("default", "description", "title")}
        node["anyOf"] = [kept, {"$ref": f"#/$defs/{_ENVIRONMENT}"}]
