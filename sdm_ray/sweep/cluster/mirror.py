"""A folder's copy on storage that all nodes reach: `s3://`, `gs://`, `file://` and whatever else pyarrow opens.

A copy is complete at every moment: its manifest is written after the files that it names, and what it no longer names
is deleted after that. So a process that dies while it copies leaves the copy before.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from sdm_ray.config import SweepSettings
from sdm_ray.core.errors import RunError, UsageError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PUSH_SECONDS = 10.0
"""The sweep's own files are copied this often."""


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
        self._pushed: dict[str, tuple[int, int]] = {}
        self._named: set[str] = set()

    def exists(self) -> bool:
        """Whether there is a copy."""
        return self._manifest() is not None

    def push(self) -> int:
        """Copy what has changed since the last time; gives the number of files.

        Raises:
            RunError: when the storage does not take it.
        """
        found = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in self._files()}
        changed = [name for name, mark in found.items() if self._pushed.get(name) != mark]
        gone = self._named - found.keys()
        if not changed and not gone:
            return 0
        try:
            for name in changed:
                self._make_folder(name)
                path = self._folder / name
                with path.open("rb") as file, self._filesystem.open_output_stream(self._at(name)) as out:
                    shutil.copyfileobj(file, out)
            self._make_folder(MANIFEST)
            with self._filesystem.open_output_stream(self._at(MANIFEST)) as out:
                out.write(json.dumps({"files": sorted(found)}).encode())
            for name in gone:
                self._filesystem.delete_file(self._at(name))
        except OSError as error:
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
            for name, _ in list(self._files()):
                if name not in names:
                    (self._folder / name).unlink()
            for name in names:
                path = self._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.pull")
                with self._filesystem.open_input_stream(self._at(name)) as stream, temporary.open("wb") as file:
                    shutil.copyfileobj(stream, file)
                temporary.replace(path)
        except OSError as error:
            raise RunError(f"cannot copy {self._uri} to {self._folder}: {error}") from error
        self._pushed = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in self._files()}
        self._named = set(names)
        return True

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
        return names

    def _files(self) -> Iterable[tuple[str, Any]]:
        for path in sorted(self._folder.rglob("*") if self._recursive else self._folder.glob("*")):
            name = path.relative_to(self._folder)
            if not any(part.startswith(".") for part in name.parts) and path.is_file() and name.name != MANIFEST:
                yield name.as_posix(), path.stat()

    def _make_folder(self, name: str) -> None:
        self._filesystem.create_dir(str(PurePosixPath(self._at(name)).parent), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


class MirrorThread:
    """Copies a sweep's own files now and then, on a thread, and once more at the end."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._closing = mirror, threading.Event()
        self._thread = threading.Thread(target=self._run, name="sdm-ray-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy what is there and end.

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
            except RunError as error:  # once more in a while; the last time it counts
                log.warning("%s", error)
