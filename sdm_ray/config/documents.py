"""Read settings files into plain values: YAML, `${env:NAME}` and `extends`.

`extends: base.yaml` merges a file into another one. The path is relative to the extending file; in a list of files,
later ones override earlier ones. `trial: {extends: trial.yaml}` does the same for the trial of a sweep. Mappings are
merged key by key; any other value of the extending file (number, text, list, null) replaces the base file's value.
Entries of `space` and `variants` are not merged but replaced, and null removes an entry.

`${env:NAME}` is replaced by an environment variable, `${env:NAME:-default}` by a default if the variable is not set or
empty. The result is parsed as YAML: a number if unquoted, text if quoted. `$${env:` is a literal `${env:`.
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
"""Sections of a sweep file whose entries are replaced, not merged."""
MAX_DEPTH, MAX_VALUES = 40, 100_000
"""Bounds of nesting and of the number of values in a document with its aliases expanded. Settings need a tenth of this;
the bounds stop nested aliases, whose expansion grows exponentially."""

_INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))
_NUMBERS = {
    _INT: re.compile(r"^[-+]?[0-9][0-9_]*$"),
    _FLOAT: re.compile(
        r"^([-+]?([0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*\.[0-9_]*)"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
"""Accepted forms of numbers. YAML 1.1 has more, some of them surprising: 1:30 is 90 and 010 is 8."""
_REFERENCE = re.compile(
    r"(?P<escaped>\$\$\{env:)"
    r"|\$\{env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}"
    r"|(?P<malformed>\$\{env:[^}]*\}?)"
)


class Document(NamedTuple):
    """The values of a settings file, merged with the files that it extends."""

    values: dict[str, Any]
    files: tuple[Path, ...]
    """The file, then the files that it extends."""

    def where(self) -> str:
        """The files, for error messages."""
        first, *others = map(str, self.files)
        return f"{first} (extends {', '.join(others)})" if others else first


def read_document(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, merged with the files that it extends. This or `read_files` reads all settings files.

    Raises:
        UsageError: if the file cannot be read, is not valid YAML, does not contain a mapping, extends itself, or names
            an environment variable that is not set.
    """
    return read_files(path).values


def read_files(path: str | Path) -> Document:
    """As `read_document`, with the paths of the files."""
    return _read(Path(path), ())


def parse_value(text: str) -> Any:
    """Parse a single YAML value, as in `--set`.

    Raises:
        UsageError: for invalid YAML; the message does not name the setting, which the caller adds.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        raise UsageError("the value is not valid YAML; quote it") from None


def dump(values: Mapping[str, Any]) -> str:
    """YAML text that `read_document` reads back to equal values, and that has the same meaning in YAML 1.1 and 1.2."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read(path: Path, below: tuple[Path, ...]) -> Document:
    """Read a file; `below` are the files that extend it, outermost first."""
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
    """Merge the document over the files in its `extends`, whose paths are relative to `path`."""
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
    """Merge `over` into `base`. `section` is empty at the top level, the key one level below, and None deeper."""
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
    """A safe YAML loader with `${env:NAME}` and the decimal numbers of YAML 1.2; a repeated key is an error.

    `3e-4` is a number and `010` is ten; `1:30` and `0x10` are text, which numeric settings reject.

    Raises:
        UsageError: for an environment variable that is not set, a malformed value (a month 13, a number with thousands
            of digits), an alias that contains itself, and a document beyond `MAX_DEPTH` or `MAX_VALUES`. The message
            begins with the line.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """Depth and number of values of each composed node, by its `id`."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node and check the bounds."""
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
        """Depth and number of values of a node whose children have been composed."""
        if not isinstance(node, yaml.CollectionNode):
            return 1, 1
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        sizes = [self._sizes[id(part)] for part in parts]
        return 1 + max((depth for depth, _ in sizes), default=0), 1 + sum(count for _, count in sizes)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; a malformed one raises an error with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            kind, text = node.tag.rpartition(":")[2], str(node.value)
            shown = text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"
            raise UsageError(f"line {node.start_mark.line + 1}: {shown} cannot be read as {kind}; quote it") from None

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node] | None) -> yaml.ScalarNode:
        """Compose a scalar. Environment variables are substituted first, before the type is inferred from the text."""
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
        """Compose a mapping and check for repeated keys, before `<<` merges other keys into it."""
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
        """A decimal integer; leading zeros are ignored."""
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """The inverse of `Loader`: text that looks like a number is quoted, and references are escaped."""

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
    """The text that replaces a reference."""
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
