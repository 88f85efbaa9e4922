"""A folder's copy on storage that all nodes reach: `s3://`, `gs://`, `file://` and whatever else pyarrow opens.

A process that dies while it copies leaves a copy that can be used: every file is written beside its place and then
swapped in, the manifest comes after the files that it names, and what it no longer names is deleted after that. Where
the store renames (a disk), a swap takes a moment. An object store has no rename: there a swap is a copy on the server,
which replaces the object as a whole, and then a deletion; a death in between leaves a hidden file that nothing reads.
Files are swapped one by one, so a copy may hold a newer version of one file beside an older one of another.

SQLite databases are copied by SQLite's own backup, never file by file while somebody writes to them.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sdm_ray.config import SweepSettings
from sdm_ray.core.databases import COMPANIONS
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import atomic_path, copy_stream

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PUSH_SECONDS = 10.0
"""The sweep's own files are copied this often."""
SQLITE_HEADER = b"SQLite format 3\0"


def sweep_uri(settings: SweepSettings) -> str | None:
    """Where the copy of a sweep's folder lies; None without `storage_path`."""
    return None if settings.storage_path is None else below(settings.storage_path, settings.name)


def trials_uri(settings: SweepSettings) -> str | None:
    """Where the copies of its trials' folders lie."""
    uri = sweep_uri(settings)
    return None if uri is None else below(uri, "trials")


def below(uri: str, name: str) -> str:
    """The URI of a name in the folder of a URI, whose query (an endpoint, a region) stays at its end."""
    path, mark, query = uri.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def open_uri(uri: str) -> tuple[Any, str]:
    """pyarrow's file system of a URI, and the path in it.

    Raises:
        UsageError: when pyarrow knows no such file system, or it cannot be reached.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"storage_path {uri!r} cannot be used: {reason}") from None
    return filesystem, path.rstrip("/")


Mark = tuple[int, ...]
"""Sizes and times of change of a file."""


def _mark(path: Path) -> Mark:
    stat = path.stat()
    log_file = path.with_name(f"{path.name}-wal")  # where SQLite writes what is not in the database yet
    with suppress(FileNotFoundError):
        more = log_file.stat()
        return stat.st_size, stat.st_mtime_ns, more.st_size, more.st_mtime_ns
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _stable(path: Path) -> Iterator[Path]:
    """A file whose contents stand still: a snapshot of an SQLite database, any other file as it is.

    Raises:
        FileNotFoundError: where it is no longer there.
        sqlite3.Error: for a database that stays locked or is damaged.
    """
    with path.open("rb") as file:
        is_database = file.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    if not is_database:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sdm-ray-mirror-") as folder:
        snapshot = Path(folder) / path.name
        address = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as source, closing(sqlite3.connect(snapshot)) as target:
            source.backup(target)
        yield snapshot


def _aside(name: str) -> str:
    """Where a file is written before it takes its place: hidden, in the same folder."""
    path = PurePosixPath(name)
    return path.with_name(f".{path.name}.new").as_posix()


class Mirror:
    """One folder and its copy.

    Args:
        folder: the folder; names that begin with a dot (locks, files that are being written) are left out.
        uri: of the copy.
        recursive: take what lies in subfolders too.
    """

    def __init__(self, folder: Path, uri: str, *, recursive: bool = True) -> None:
        self._folder, self._uri, self._recursive = folder, uri, recursive
        self._filesystem, self._root = open_uri(uri)
        self._pushed: dict[str, Mark] = {}
        self._named: set[str] = set()

    def exists(self) -> bool:
        """Whether there is a copy."""
        return self._manifest() is not None

    def push(self) -> int:
        """Copy what has changed since the last time; gives the number of files.

        Raises:
            RunError: when the storage does not take it.
        """
        found = dict(self._files())
        changed = [name for name, mark in found.items() if self._pushed.get(name) != mark]
        if not changed and not self._named - found.keys():
            return 0
        try:
            for name in changed:
                if not self._write_aside(name):
                    del found[name]  # it vanished after it was listed
            changed = [name for name in changed if name in found]
            for name in changed:
                self._filesystem.move(self._at(_aside(name)), self._at(name))
            self._write_manifest(sorted(found))
            for name in self._named - found.keys():
                self._filesystem.delete_file(self._at(name))
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"cannot copy {self._folder} to {self._uri}: {error}") from error
        self._pushed, self._named = found, set(found)
        return len(changed)

    def pull(self) -> bool:
        """Make the folder equal to its copy; False, and nothing is changed, where there is none.

        Raises:
            RunError: when the copy cannot be read, or names files outside the folder.
        """
        try:
            names = self._manifest()
            if names is None:
                return False
            for path in self._paths():
                if path.relative_to(self._folder).as_posix() not in names:
                    path.unlink()
            for name in names:
                stream = self._filesystem.open_input_stream(self._at(name))
                with stream, atomic_path(self._folder / name) as temporary:
                    copy_stream(stream, temporary)
        except OSError as error:
            raise RunError(f"cannot copy {self._uri} to {self._folder}: {error}") from error
        self._pushed = dict(self._files())
        self._named = set(names)
        return True

    def _write_aside(self, name: str) -> bool:
        """Copy a file to its hidden place beside the copy; False where it is no longer there."""
        self._make_folder(name)
        try:
            with (
                _stable(self._folder / name) as source,
                source.open("rb") as file,
                self._filesystem.open_output_stream(self._at(_aside(name))) as out,
            ):
                shutil.copyfileobj(file, out)
        except FileNotFoundError:
            if (self._folder / name).exists():
                raise
            with suppress(OSError):
                self._filesystem.delete_file(self._at(_aside(name)))
            return False
        return True

    def _write_manifest(self, names: list[str]) -> None:
        self._make_folder(MANIFEST)
        with self._filesystem.open_output_stream(self._at(_aside(MANIFEST))) as out:
            out.write(json.dumps({"files": names}).encode())
        self._filesystem.move(self._at(_aside(MANIFEST)), self._at(MANIFEST))

    def _manifest(self) -> list[str] | None:
        from pyarrow.fs import FileType

        if self._filesystem.get_file_info(self._at(MANIFEST)).type == FileType.NotFound:
            return None
        try:
            with self._filesystem.open_input_stream(self._at(MANIFEST)) as stream:
                names: list[str] = json.loads(stream.read())["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{below(self._uri, MANIFEST)} is damaged: {error}") from None
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise RunError(f"{below(self._uri, MANIFEST)} names {name!r}, which lies outside its folder")
        return [name for name in names if not name.endswith(COMPANIONS)]  # they mean nothing beside a copy

    def _files(self) -> Iterator[tuple[str, Mark]]:
        """Names of files to copy, each with what changes when it changes."""
        for path in self._paths():
            name = path.relative_to(self._folder)
            if name.name.endswith(COMPANIONS):
                continue
            with suppress(FileNotFoundError):  # it vanished after it was listed
                yield name.as_posix(), _mark(path)

    def _paths(self) -> list[Path]:
        """Every file of the folder but hidden ones and the manifest."""
        found = self._folder.rglob("*") if self._recursive else self._folder.glob("*")
        shown = [path for path in found if not any(p.startswith(".") for p in path.relative_to(self._folder).parts)]
        return sorted(path for path in shown if path.is_file() and path.name != MANIFEST)

    def _make_folder(self, name: str) -> None:
        self._filesystem.create_dir(str(PurePosixPath(self._at(name)).parent), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


class MirrorThread:
    """A thread that copies a sweep's own files every `PUSH_SECONDS`, and once more at the end."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._closing = mirror, threading.Event()
        self._thread = threading.Thread(target=self._run, name="sdm-ray-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and copy a last time.

        Raises:
            RunError: when the storage does not take it.
        """
        self._closing.set()
        self._thread.join()
        self._mirror.push()

    def _run(self) -> None:
        while not self._closing.wait(PUSH_SECONDS):
            try:
                self._mirror.push()
            except Exception as error:  # the next push tries again, and the last one raises
                log.warning("%s", error, exc_info=not isinstance(error, RunError))
