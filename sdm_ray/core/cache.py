"""Cache folders of machines, and the entries that machines share, so that each is built on one of them only.

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
"""Field of an entry's own that holds its key: a digest of all that it was made from."""
Files = Mapping[str, Any]
"""Contents of an entry's files, (bytes,) uint8 arrays, by their paths in the cache folder and in the order in which
they are written: the last one makes the entry count."""


def is_asked(key: str, found: Any) -> bool:
    """Whether an entry is what was asked for, by the key within it, for a file can be renamed or copied.

    An entry of before has none and is taken by its name alone. This tells a mix-up; it does not tell who wrote a file,
    so the cache folder must be the user's own, and no file from elsewhere may choose it.

    Args:
        key: what is asked for.
        found: the key within the entry; None where it has none.
    """
    return found is None or found == key


class SharedCache(Protocol):
    """Entries of cache folders that several machines share; equal ones share the same."""

    def __hash__(self) -> int: ...

    def has(self, name: str) -> bool:
        """Whether there is an entry of this name."""

    def take(self, name: str) -> Files | None:
        """The files of an entry; None where there is no such entry or reading it failed."""

    def give(self, name: str, files: Files) -> None:
        """Share an entry; where that fails, others build their own."""


def fetch(cache_dir: Path, name: str, shared: SharedCache | None) -> bool:
    """Put a shared entry into the cache folder, if there is one.

    Args:
        cache_dir: the cache folder.
        name: of the entry; it identifies its contents.
        shared: where entries are shared; None where they are not.

    Returns:
        Whether it is there now.

    Raises:
        RunError: when the folder cannot be written, or the entry names files outside it.
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
    """What `read` finds in the cache folder, at once or when the entry has been fetched; None where it is nowhere."""
    found = read()
    if found is None and fetch(cache_dir, name, shared):
        found = read()
    return found


def offer(cache_dir: Path, name: str, paths: Iterable[Path], shared: SharedCache | None) -> None:
    """Share an entry of the cache folder with those who lack it.

    Args:
        cache_dir: the cache folder.
        name: of the entry.
        paths: its files, the one that makes it count last.
        shared: where entries are shared; None where they are not.
    """
    if shared is None or shared.has(name):
        return
    shared.give(name, {path.relative_to(cache_dir).as_posix(): np.fromfile(path, dtype=np.uint8) for path in paths})
