"""Read and write settings: YAML, dotted overrides, content hashes, and error messages that name the dotted path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

from pydantic import BaseModel, ValidationError

from sdm_ray.config.base import Settings
from sdm_ray.config.documents import dump, parse_value, read_document, read_files
from sdm_ray.config.sweep import SweepSettings
from sdm_ray.config.trial import TrialSettings
from sdm_ray.core.errors import UsageError, listed
from sdm_ray.core.suggest import nearest

T = TypeVar("T", bound=Settings)

NOT_HASHED = {"name", "runtime", "origin", "scratch"}
"""Parts of a trial's settings that affect neither its model nor its attack."""


def load_settings(kind: type[T], path: str | Path, overrides: Iterable[str] = ()) -> T:
    """Read, override and validate one YAML file.

    Args:
        kind: `TrialSettings` or `SweepSettings`.
        path: the YAML file.
        overrides: strings `dotted.path=value`; the value is YAML.

    Raises:
        UsageError: for an invalid setting; the message names the dotted path, the value and the rule.
    """
    document = read_files(path)
    return parse_settings(kind, document.values, overrides, where=document.where())


def parse_settings(kind: type[T], document: Mapping[str, Any], overrides: Iterable[str] = (), *, where: str = "") -> T:
    """Apply `dotted.path=value` overrides to a mapping and validate it; see `load_settings`."""
    values: dict[str, Any] = _deep_copy(document)
    for text in overrides:
        dotted, separator, raw = text.partition("=")
        if not separator or not dotted.strip():
            raise UsageError(f"--set {text!r}: write it as dotted.path=value")
        try:
            value = parse_value(raw)
        except UsageError as error:
            raise UsageError(f"--set {text!r}: {error}") from None
        _assign(values, dotted.strip(), value)
    _check_kind(kind, values, where)
    return _validate(kind, values, where)


def override(settings: T, changes: Mapping[str, Any]) -> T:
    """A validated copy of the settings with some values replaced, by dotted path.

    Raises:
        UsageError: for an unknown path or an invalid value.
    """
    values = settings.model_dump(mode="json")
    for dotted, value in changes.items():
        _assign(values, dotted, value)
    return _validate(type(settings), values, "")


def check_path(kind: type[BaseModel], dotted: str) -> None:
    """Raise `UsageError` if `kind` has no setting `dotted`; any key of a mapping (`train.blocking.custom`) is valid."""
    model: type[BaseModel] | None = kind
    keys = dotted.split(".")
    for depth, key in enumerate(keys):
        if model is None or key not in model.model_fields:
            names = sorted(model.model_fields) if model is not None else []
            prefix = ".".join(keys[:depth])
            raise UsageError(f"unknown setting {dotted!r}{_suggestion(key, names, prefix)}")
        annotation = model.model_fields[key].annotation
        if get_origin(annotation) is dict and len(keys) == depth + 2 and keys[-1]:
            return
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def content_hash(settings: Settings) -> str:
    """A hash (12 hexadecimal digits) of what the settings compute; names and the parts in `NOT_HASHED` do not count."""
    values = settings.identity()
    if isinstance(settings, TrialSettings):
        values = {key: value for key, value in values.items() if key not in NOT_HASHED}
    return digest(values)


def digest(value: Any) -> str:
    """A hash (12 hexadecimal digits) of any JSON value; it does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_yaml(settings: Settings) -> str:
    """YAML that `load_settings` reads back to equal settings."""
    return dump(settings.model_dump(mode="json", exclude_none=True))


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value at a dotted path.

    Keys of `space`, `variants.NAME` and `search.points.N` are dotted paths themselves: the longest existing key is
    used, or the whole rest of the path if none exists. A number is an index into a list.
    """
    keys, node = dotted.split("."), cast(Any, values)
    at = 0
    while at < len(keys):
        last = at + 1
        key: Any = keys[at]
        if isinstance(node, list):
            key = _index(node, key, dotted)
        elif _holds_paths(keys[:at]):
            ends = [end for end in range(len(keys), at, -1) if ".".join(keys[at:end]) in node]
            last = ends[0] if ends else len(keys)
            key = ".".join(keys[at:last])
            if not ends and keys[0] == "space" and not isinstance(value, dict | None):
                raise UsageError(
                    f"--set {dotted}: space holds no {key!r} yet; give all of it, as in --set '{dotted}={{type: float, "
                    "low: 1e-4, high: 1e-2, log: true}'"
                )
        if last == len(keys):
            node[key] = value
        elif not isinstance(node[key] if isinstance(node, list) else node.get(key), dict | list):
            if keys[last].isdecimal():
                above = ".".join(keys[:last])
                raise UsageError(f"--set {dotted}: no list {above} is set here, which could have an item; set it whole")
            node[key] = {}
        node, at = node[key], last


def _holds_paths(above: list[str]) -> bool:
    """Whether the keys below this one are dotted paths."""
    return (
        above == ["space"]
        or (above[:1] == ["variants"] and len(above) == 2)
        or (above[:2] == ["search", "points"] and len(above) == 3)
    )


def _index(items: list[Any], key: str, dotted: str) -> int:
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    there = f"items 0 to {len(items) - 1}" if items else "no items"
    raise UsageError(f"--set {dotted}: {key!r} is no item of a list, which has {there} here; set the whole list")


def _check_kind(kind: type[T], values: Mapping[str, Any], where: str) -> None:
    """Reject a sweep where a trial is expected, and vice versa, by the top-level keys."""
    if kind not in _COMMANDS:
        return
    (other,) = _COMMANDS.keys() - {kind}
    both = {*kind.model_fields, "modules"}
    theirs = [key for key in values if key in other.model_fields and key not in both]
    ours = [key for key in values if key in kind.model_fields and key not in {*other.model_fields, "modules"}]
    if theirs and not ours:
        name, wanted = _COMMANDS[other], _COMMANDS[kind]
        raise UsageError(
            f"{where or 'this'} holds the settings of a {name[0]} ({', '.join(sorted(theirs))}), and those of a "
            f"{wanted[0]} are asked for; a {name[0]} is run by `sdm-ray {name[1]}{f' {where}' if where else ''}`"
        )


_COMMANDS: dict[type[Settings], tuple[str, str]] = {
    TrialSettings: ("trial", "train"),
    SweepSettings: ("sweep", "sweep"),
}
"""By class: the kind of file, and the command that takes it."""


def _validate(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = listed([_describe(kind, item) for item in error.errors()])
        raise UsageError(f"{where}: {problems}" if where else problems) from None


def _describe(kind: type[Settings], item: Any) -> str:
    location = [str(part) for part in item["loc"] if not (isinstance(part, str) and part in _TAGS)]
    dotted = ".".join(location) or kind.__name__
    if item["type"] == "extra_forbidden":
        parent = _model_at(kind, location[:-1])
        names = sorted(parent.model_fields) if parent is not None else []
        return f"unknown setting {dotted!r}{_suggestion(location[-1], names, '.'.join(location[:-1]))}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if item["type"] == "value_error":
        return f"{dotted}: {message}"
    return f"{dotted}: got {_short(item['input'])}, {message}"


_TAGS = {"float", "int", "categorical"}


def _model_at(kind: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = kind
    for key in location:
        field = model.model_fields.get(key) if model is not None else None
        annotation = field.annotation if field is not None else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return model


def _suggestion(key: str, names: list[str], prefix: str) -> str:
    close = nearest(key, names)
    if close:
        dotted = f"{prefix}.{close[0]}" if prefix else close[0]
        return f"; did you mean {dotted!r}?"
    if not names:
        return f"; {prefix!r} has no settings below it"
    return f"; {prefix or 'the top level'} has: {', '.join(names)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = [
    "SweepSettings",
    "TrialSettings",
    "check_path",
    "content_hash",
    "digest",
    "load_settings",
    "override",
    "parse_settings",
    "read_document",
    "to_yaml",
]
