"""Settings files as plain values: YAML, `${env:NAME}` and `extends`, all resolved when a file is read.

A file may begin from another one: `extends: base.yaml`, relative to the file that says so, or a list of files of which
later ones count more; `trial: {extends: trial.yaml}` does the same for the trial of a sweep. Merging: mappings are
merged key by key, and whatever else the extending file says (numbers, text, lists, null) takes the place of what it
extends. Entries of `space` and of `variants` are taken whole, and null drops one.

`${env:NAME}` stands for an environment variable, and `${env:NAME:-default}` for a default where it is not set or empty.
What is put in is read as if it stood there: a number without quotes, text within quotes. `$${env:` is `${env:` itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import is_file, user_path

EXTENDS = "extends"
WHOLE = ("space", "variants")
"""Sections of a sweep file whose entries are not merged."""
MAX_DEPTH, MAX_VALUES = 40, 100_000
"""Of a document in which every alias stands for what it names: settings need a tenth, and nested aliases grow fast."""

_INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))
_NUMBERS = {
    _INT: re.compile(r"^[-+]?[0-9][0-9_]*$"),
    _FLOAT: re.compile(
        r"^([-+]?([0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*\.[0-9_]*)"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
"""How numbers are written. YAML 1.1 has more, and they surprise: 1:30 is 90 and 010 is 8."""
_REFERENCE = re.compile(
    r"(?P<escaped>\$\$\{env:)"
    r"|\$\{env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}"
    r"|(?P<malformed>\$\{env:[^}]*\}?)"
)


class Document(NamedTuple):
    """What a settings file says, together with the files that it extends."""

    values: dict[str, Any]
    files: tuple[Path, ...]
    """The file, then those that it extends."""

    def where(self) -> str:
        """The files, for messages."""
        first, *others = map(str, self.files)
        return f"{first} (extends {', '.join(others)})" if others else first


def read_document(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, with the files that it extends; every settings file is read by this or `read_files`.

    Raises:
        UsageError: when it cannot be read, is no YAML, holds no mapping, extends itself, or names an environment
            variable that is not set.
    """
    return read_files(path).values


def read_files(path: str | Path) -> Document:
    """As `read_document`, with the names of the files."""
    return _read(Path(path), ())


def parse_value(text: str) -> Any:
    """A YAML value on its own, as `--set` takes it.

    Raises:
        UsageError: saying what is wrong with it, without where it stands.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        raise UsageError("the value is not valid YAML; quote it") from None


def dump(values: Mapping[str, Any]) -> str:
    """YAML that `read_document` reads back to the same values, and that YAML 1.1 and 1.2 read alike."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read(path: Path, below: tuple[Path, ...]) -> Document:
    """A file; `below` are those that extend it, the first one first."""
    resolved = path.resolve()
    if resolved in below:
        circle = " extends ".join(file.name for file in (*below[below.index(resolved) :], resolved))
        raise UsageError(f"settings file {path} extends itself ({circle}); drop one `{EXTENDS}`")
    document = _extended(Document(_load(path), (path,)), path, (*below, resolved))
    trial = document.values.get("trial")
    if isinstance(trial, dict) and EXTENDS in trial:
        inner = _extended(Document(trial, document.files), path, (*below, resolved))
        document = Document({**document.values, "trial": inner.values}, inner.files)
    return document


def _extended(document: Document, path: Path, below: tuple[Path, ...]) -> Document:
    """With what its `extends` names, relative to `path`, below it."""
    if EXTENDS not in document.values:
        return document
    values = dict(document.values)
    named = values.pop(EXTENDS)
    names = [named] if isinstance(named, str) else named
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise UsageError(f"settings file {path}: {EXTENDS} is {named!r}, and must be a file's name or a list of them")
    base: dict[str, Any] = {}
    files = document.files
    for name in names:
        file = path.parent / user_path(name, f"settings file {path}, {EXTENDS}")
        if not is_file(file):
            raise UsageError(f"settings file {path}: {EXTENDS} names {name!r}, and {file} is no file; correct the path")
        below_it = _read(file, below)
        base, files = _merged(base, below_it.values), (*files, *below_it.files)
    return Document(_merged(base, values), files)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], section: str | None = "") -> dict[str, Any]:
    """`over` upon `base`; `section` is empty at the top, a key one level below it, and None deeper."""
    merged = dict(base)
    for key, value in over.items():
        if section in WHOLE:
            merged.pop(key, None)
            merged |= {} if value is None else {key: value}
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value, key if section == "" else None)
        else:
            merged[key] = value
    return merged


def _load(path: Path) -> dict[str, Any]:
    """The mapping in one file."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, Loader=Loader)
    except FileNotFoundError:
        raise UsageError(f"settings file {path} does not exist") from None
    except IsADirectoryError:
        found = sorted(file.name for file in path.glob("*.yaml"))
        hint = f", for example {path / found[0]}" if found else ""
        raise UsageError(f"settings file {path} cannot be read: it is a folder; name a file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"settings file {path} cannot be read: {error}") from None
    except UsageError as error:
        raise UsageError(f"settings file {path}, {error}") from None
    except yaml.YAMLError as error:
        hint = "; within {} and [], quote ${env:...}" if "${env:" in text else ""
        raise UsageError(f"settings file {path} is not valid YAML: {' '.join(str(error).split())}{hint}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"settings file {path} must hold a mapping of settings, found {type(document).__name__}")
    return document


class Loader(yaml.SafeLoader):
    """Safe YAML in which a key may not repeat, with `${env:NAME}`, and numbers as YAML 1.2 has them.

    `3e-4` is a number and `010` is ten; `1:30` and `0x10` are text, which no setting takes for a number.

    Raises:
        UsageError: beginning with the line, for an environment variable that is not set, a value that is not of its
            kind (a month 13, a number of thousands of digits), an alias within what it names, and a document beyond
            `MAX_DEPTH` or `MAX_VALUES`.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """Depth and number of values of what has been composed, by the node's identity."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A value, within the bounds."""
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UsageError(f"line {line}: more than {MAX_DEPTH} values stand within each other; nest less")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if id(node) not in self._sizes:
            if isinstance(node, yaml.CollectionNode) and node.end_mark is None:
                raise UsageError(f"line {line}: an alias names what it stands in; write that out or leave it out")
            self._sizes[id(node)] = self._size(node)
        depth, count = self._sizes[id(node)]
        if self._depth + depth > MAX_DEPTH + 1 or count > MAX_VALUES:
            raise UsageError(
                f"line {line}: with its aliases followed the file holds more than {MAX_VALUES} values, or more than "
                f"{MAX_DEPTH} within each other; write out what is meant"
            )
        return node

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        """Depth and number of values of a node whose parts have been composed."""
        if not isinstance(node, yaml.CollectionNode):
            return 1, 1
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        sizes = [self._sizes[id(part)] for part in parts]
        return 1 + max((depth for depth, _ in sizes), default=0), 1 + sum(count for _, count in sizes)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; what is not of its kind is said with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            kind, text = node.tag.rpartition(":")[2], str(node.value)
            shown = text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"
            raise UsageError(f"line {node.start_mark.line + 1}: {shown} cannot be read as {kind}; quote it") from None

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node] | None) -> yaml.ScalarNode:
        """A value with environment variables put in, before its type is told from how it is written."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if "${env:" in event.value:
            line = event.start_mark.line + 1
            event.value = _REFERENCE.sub(lambda found: _resolved(found, line), event.value)
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in event.value):
            line = event.start_mark.line + 1
            raise UsageError(f"line {line}: {event.value[:40]!r} holds a character that no file or name can; drop it")
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)  # type: ignore[arg-type]
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node] | None) -> yaml.MappingNode:
        """A mapping as it is written, before `<<` puts other keys into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"key {key.value!r} appears twice, line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
        return node

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """A whole number; zeros before it change nothing."""
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """The inverse of `Loader`: text that it would take for a number or a reference is written so that it stays text."""

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Text, with references escaped."""
        node: yaml.ScalarNode = self.represent_str(data.replace("${env:", "$${env:"))
        return node


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in _NUMBERS]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (Loader, _Dumper):
    for _tag, _pattern in _NUMBERS.items():
        _kind.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))
Loader.add_constructor(_INT, Loader.construct_decimal)
_Dumper.add_representer(str, _Dumper.represent_text)


def _resolved(found: re.Match[str], line: int) -> str:
    """What stands for a reference."""
    if found["escaped"]:
        return "${env:"
    if found["malformed"]:
        raise UsageError(f"line {line}: {found[0]!r} names no environment variable; write ${{env:NAME}}")
    value = os.environ.get(found["name"], "")
    if found["default"] is not None:
        return value or found["default"]
    if found["name"] not in os.environ:
        raise UsageError(
            f"line {line}: the environment variable {found['name']} is not set; set it, or write "
            f"${{env:{found['name']}:-default}}"
        )
    return value
