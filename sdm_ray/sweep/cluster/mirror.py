"""Copies a folder to storage that all nodes can access: `s3://`, `gs://`, `file://` and other pyarrow file systems.

If a process dies during a copy, the copy remains usable: every file is written to a temporary name and then moved into
place, then the manifest is written, and files that it no longer lists are deleted last. On a disk a move is an atomic
rename. An object store has no rename: the move is a server-side copy, which replaces the object as a whole, and a
deletion; a death in between leaves a hidden file that nothing reads. Files are moved one by one, so a copy may contain
a newer version of one file and an older one of another.

SQLite databases are copied with SQLite's backup API, because the file of a database in use may be inconsistent.
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
"""Interval at which the sweep's own files are copied."""
SQLITE_HEADER = b"SQLite format 3\0"


def sweep_uri(settings: SweepSettings) -> str | None:
    """URI of the copy of a sweep's folder; None without `storage_path`."""
    return None if settings.storage_path is None else below(settings.storage_path, settings.name)


def trials_uri(settings: SweepSettings) -> str | None:
    """URI of the copies of the trials' folders; None without `storage_path`."""
    uri = sweep_uri(settings)
    return None if uri is None else below(uri, "trials")


def below(uri: str, name: str) -> str:
    """Append a name to the path of a URI; its query (such as an endpoint or a region) stays at the end."""
    path, mark, query = uri.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def open_uri(uri: str) -> tuple[Any, str]:
    """Return pyarrow's file system for a URI, and the path in it.

    Raises:
        UsageError: if pyarrow does not support the file system or cannot reach it.
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
"""Size and modification time of a file, followed by those of its SQLite log, if there is one."""


def _mark(path: Path) -> Mark:
    stat = path.stat()
    log_file = path.with_name(f"{path.name}-wal")  # SQLite's write-ahead log
    with suppress(FileNotFoundError):
        more = log_file.stat()
        return stat.st_size, stat.st_mtime_ns, more.st_size, more.st_mtime_ns
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _stable(path: Path) -> Iterator[Path]:
    """Yield a path with consistent contents: a snapshot of an SQLite database, or else the file itself.

    Raises:
        FileNotFoundError: if the file no longer exists.
        sqlite3.Error: if the database stays locked or is damaged.
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
    """Temporary name of a file before it is moved into place: hidden, in the same folder."""
    path = PurePosixPath(name)
    return path.with_name(f".{path.name}.new").as_posix()


class Mirror:
    """Synchronises one folder with its copy.

    Args:
        folder: the local folder; names that begin with a dot (locks, temporary files) are skipped.
        uri: URI of the copy.
        recursive: include subfolders.
    """

    def __init__(self, folder: Path, uri: str, *, recursive: bool = True) -> None:
        self._folder, self._uri, self._recursive = folder, uri, recursive
        self._filesystem, self._root = open_uri(uri)
        self._pushed: dict[str, Mark] = {}
        self._named: set[str] = set()

    def exists(self) -> bool:
        """Whether the copy exists."""
        return self._manifest() is not None

    def push(self) -> int:
        """Copy the files that changed since the last push or pull; returns their number.

        Raises:
            RunError: if writing to the storage fails.
        """
        found = dict(self._files())
        changed = [name for name, mark in found.items() if self._pushed.get(name) != mark]
        if not changed and not self._named - found.keys():
            return 0
        try:
            for name in changed:
                if not self._write_aside(name):
                    del found[name]  # deleted since it was listed
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
        """Make the folder equal to its copy; if there is no copy, change nothing and return False.

        Raises:
            RunError: if the copy cannot be read, or its manifest lists files outside the folder.
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
        """Copy a file to its temporary name at the destination; returns False if the file no longer exists."""
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
        return [name for name in names if not name.endswith(COMPANIONS)]  # snapshots have none

    def _files(self) -> Iterator[tuple[str, Mark]]:
        """Yield the name of each file to copy, with its size and modification time."""
        for path in self._paths():
            name = path.relative_to(self._folder)
            if name.name.endswith(COMPANIONS):
                continue
            with suppress(FileNotFoundError):  # deleted since it was listed
                yield name.as_posix(), _mark(path)

    def _paths(self) -> list[Path]:
        """All files of the folder, except hidden ones and the manifest."""
        found = self._folder.rglob("*") if self._recursive else self._folder.glob("*")
        shown = [path for path in found if not any(p.startswith(".") for p in path.relative_to(self._folder).parts)]
        return sorted(path for path in shown if path.is_file() and path.name != MANIFEST)

    def _make_folder(self, name: str) -> None:
        self._filesystem.create_dir(str(PurePosixPath(self._at(name)).parent), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


class MirrorThread:
    """Thread that copies a sweep's own files every `PUSH_SECONDS`, and once more when it is closed."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._closing = mirror, threading.Event()
        self._thread = threading.Thread(target=self._run, name="sdm-ray-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and copy a last time.

        Raises:
            RunError: if writing to the storage fails.
        """
        self._closing.set()
        self._thread.join()
        self._mirror.push()

    def _run(self) -> None:
        while not self._closing.wait(PUSH_SECONDS):
            try:
                self._mirror.push()
            except Exception as error:  # the next push retries; only the last one raises
                log.warning("%s", error, exc_info=not isinstance(error, RunError))
