"""The cache folder of a machine, and a cache shared between machines, so that an entry is built on one machine only.

Without a shared cache (the default) every machine builds all entries of its own cache folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np

from sdm_ray.core.errors import RunError
from sdm_ray.core.files import atomic_path, write_bytes

T = TypeVar("T")

ASKED = "asked"
"""Field of an entry that holds its key, the digest of everything from which it is built."""
Files = Mapping[str, Any]
"""An entry's files: contents as 1-d uint8 arrays, by path relative to the cache folder, in the order in which they are
written. Writing the last file makes the entry valid."""


def is_asked(key: str, found: Any) -> bool:
    """Whether an entry is the requested one, according to the key stored in it: its file may have been renamed.

    Older entries store no key and are accepted by their file name. The check detects mix-ups, not tampering: the cache
    folder must belong to the user, and downloaded files must not choose it.

    Args:
        key: the requested key.
        found: the key stored in the entry; None if it has none.
    """
    return found is None or found == key


class SharedCache(Protocol):
    """Entries that several machines share. Two equal objects share the same entries."""

    def __hash__(self) -> int: ...

    def has(self, name: str) -> bool:
        """Whether there is an entry with this name."""

    def take(self, name: str) -> Files | None:
        """The files of an entry; None if there is no such entry or it cannot be read."""

    def give(self, name: str, files: Files) -> None:
        """Share an entry. If that fails, other machines build their own."""


def fetch(cache_dir: Path, name: str, shared: SharedCache | None) -> bool:
    """Copy a shared entry into the cache folder, if there is one.

    Args:
        cache_dir: the cache folder.
        name: name of the entry, which identifies its contents.
        shared: the shared cache; None for none.

    Returns:
        Whether the entry was copied.

    Raises:
        RunError: if the folder cannot be written, or the entry names files outside it.
    """
    files = None if shared is None else shared.take(name)
    for path, content in (files or {}).items():
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise RunError(f"shared cache entry {name!r} names {path!r}, which lies outside the cache folder")
        with atomic_path(cache_dir / path) as temporary:
            write_bytes(temporary, memoryview(content))
    return files is not None


def look_up(cache_dir: Path, name: str, read: Callable[[], T | None], shared: SharedCache | None) -> T | None:
    """The result of `read`, called again after fetching the shared entry if it returned None; None if still missing."""
    found = read()
    if found is None and fetch(cache_dir, name, shared):
        found = read()
    return found


def offer(cache_dir: Path, name: str, paths: Iterable[Path], shared: SharedCache | None) -> None:
    """Copy an entry of the cache folder to the shared cache, unless it is there already.

    Args:
        cache_dir: the cache folder.
        name: name of the entry.
        paths: its files; last the one that makes the entry valid.
        shared: the shared cache; None for none.
    """
    if shared is None or shared.has(name):
        return
    shared.give(name, {path.relative_to(cache_dir).as_posix(): np.fromfile(path, dtype=np.uint8) for path in paths})
