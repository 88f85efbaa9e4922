"""A user's modules: located, imported, and identified by a digest of their source.

Everything they register (blocking terms, attack families, metrics, data sources) can then be used by name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from sdm_ray.core.errors import UsageError

_imported: dict[str, str] = {}
"""Digests of imported modules at import time, so that changed ones are reloaded."""


def load_modules(modules: Mapping[str, str], where: str = "modules") -> dict[str, str]:
    """Import modules, also from the working directory; returns the digests of their sources by name.

    Args:
        modules: dotted name to the required digest of its source; an empty digest accepts any.
        where: the setting that contains them, for the error.

    Raises:
        UsageError: for a module that cannot be imported, or whose source has another digest.
    """
    found = {}
    for name, expected in modules.items():
        if expected and "." not in name and lies_at(name) is not None:
            _check_source(name, expected, where)  # before its code runs
        import_own(name, where)
        found[name] = source_digest(name)
        if expected:
            _check_source(name, expected, where)
    return found


def _check_source(name: str, expected: str, where: str) -> None:
    found = source_digest(name)
    if found != expected:
        raise UsageError(
            f"{where}: {name!r} is not the module that this was made with (its source was {expected}, is "
            f"{found}): restore it, or name it alone (`--module {name}`) to take it as it is"
        )


def lies_at(name: str) -> Path | None:
    """File of a module's top package, found without importing it; None if it is not found."""
    top = name.partition(".")[0]
    _make_findable(top)
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a notebook's own module has none
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def check_named(modules: Iterable[str], where: str) -> list[Path]:
    """Check that modules requested by a file (not by the user) are in the working directory; returns their files.

    A file may come from someone else (a `best.yaml`, a sweep's folder), and loading a module runs its code.

    Raises:
        UsageError: for a module elsewhere.
    """
    places, here = [], Path.cwd().resolve()
    for name in modules:
        place = lies_at(name)
        if place is None:
            continue  # the import reports the fault
        resolved = place.resolve()
        if not resolved.is_relative_to(here) or "site-packages" in resolved.parts:
            raise UsageError(
                f"{where}: the file asks for the module {name!r}, which would run {place}, outside the working "
                f"directory; where you trust it, add `--module {name}`"
            )
        places.append(place)
    return places


def import_own(name: str, where: str = "modules") -> ModuleType:
    """Import a module; if it was imported here and has changed since, reload it.

    Raises:
        UsageError: if it cannot be imported.
    """
    try:
        _make_findable(name.partition(".")[0])
        module = importlib.import_module(name)
        digest = source_digest(name)
        if _imported.setdefault(name, digest) != digest:
            module = importlib.reload(module)
            _imported[name] = digest
        return module
    except Exception as error:  # a user's module may raise anything
        raise UsageError(
            f"{where}: {name!r} cannot be imported ({type(error).__name__}: {error}); give a module on Python's path "
            f"or in the working directory, {Path.cwd()}"
        ) from error


def source_digest(name: str) -> str:
    """12 hexadecimal digits of a hash of a module's source; for a package, of all Python files in its folder.

    The digest does not include modules that it imports.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a notebook's own module has none
        spec = None
    if spec is None or spec.origin is None:
        return hashlib.sha256(name.encode()).hexdigest()[:12]
    origin = Path(spec.origin)
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    result = hashlib.sha256()
    for file in files:
        label = file.relative_to(origin.parent).as_posix() if len(files) > 1 else ""
        content = file.read_bytes()
        result.update(f"{label}\0{len(content)}\0".encode() + content)
    return result.hexdigest()[:12]


def _make_findable(top: str) -> None:
    """Append the working directory to Python's path if a module is not found otherwise."""
    folder = str(Path.cwd())
    if top in sys.modules or folder in sys.path:
        return
    importlib.invalidate_caches()
    if importlib.util.find_spec(top) is None:
        sys.path.append(folder)
