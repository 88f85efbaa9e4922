"""Atomic file operations: readers never see partial files.

Every write, truncation, sync, rename and removal of the package uses `_write`, `_truncate`, `_sync`, `_rename` and
`_remove`: a test kills a sweep at each of them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm_ray.core.errors import DamagedError, RunError, UsageError

if TYPE_CHECKING:
    from _typeshed import SupportsRead


COPY_BYTES = 1 << 20
"""Chunk size for copying files, in bytes."""


def user_path(text: str | Path, setting: str) -> Path:
    """Path as typed by a user, with `~` for a home folder.

    Args:
        text: the path.
        setting: the setting or option that holds the path, for the error.

    Raises:
        UsageError: for a home folder that does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{setting}: there is no home folder for {str(text)!r} (no such user, or HOME is not set); "
            "write the whole path"
        ) from None


def is_file(path: Path) -> bool:
    """Whether the file exists; False if the name is too long or a folder is not readable."""
    with suppress(OSError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether the folder exists, as in `is_file`."""
    with suppress(OSError):
        return path.is_dir()
    return False


def _write(file: int, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _truncate(file: int, size: int) -> None:
    os.ftruncate(file, size)


def _sync(file: int) -> None:
    os.fsync(file)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file in place, for files that have no readers yet; raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write(file, content)
        if sync:
            _sync(file)
    finally:
        os.close(file)


def sync_path(path: Path) -> None:
    """Flush a file's contents, or a folder's entries, to disk; raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        _sync(file)
    finally:
        os.close(file)


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder, replacing an existing file or empty folder. Raises OSError."""
    _rename(source, target)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, as far as possible."""
    with suppress(OSError):
        _remove(path)


def replace_folder(fresh: Path, folder: Path) -> None:
    """Replace a folder by another one and remove the old one; raises OSError."""
    if folder.exists():
        retired = folder.with_name(f".{folder.name}.old.{uuid.uuid4().hex}")
        _rename(folder, retired)
        _rename(fresh, folder)
        remove(retired)
    else:
        _rename(fresh, folder)


def copy_stream(stream: SupportsRead[bytes], path: Path) -> None:
    """Copy the rest of a stream to a file that has no readers yet; raises OSError."""
    with path.open("wb", buffering=0) as file:
        while block := stream.read(COPY_BYTES):
            _write(file.fileno(), block)


def copy(source: Path, target: Path) -> Path:
    """Copy a file, or a folder with its contents; returns the copy's path; raises OSError."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            copy(path, target / path.name)
    else:
        with source.open("rb") as stream:
            copy_stream(stream, target)
    return target


class LineFile:
    """An append-only file of lines.

    Args:
        path: path of the file, created if missing.
        size: number of existing bytes to keep, since a kill can leave a partial line at the end; None keeps all.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.size = os.fstat(self._file).st_size
        if size is not None and size != self.size:
            _truncate(self._file, size)
            self.size = size

    def append(self, line: bytes, *, sync: bool = False) -> None:
        """Append a line that ends with its newline; a failed write is rolled back. Raises OSError.

        Args:
            line: the line, with its newline.
            sync: return only after it is flushed to disk.
        """
        if self._file is None:
            raise ValueError("the file is closed")
        try:
            _write(self._file, line)
            if sync:
                _sync(self._file)
        except OSError:
            with suppress(OSError):
                _truncate(self._file, self.size)
            raise
        self.size += len(line)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Temporary path beside `path`: replaces it if the block succeeds, and is removed if the block fails.

    Args:
        path: the file.
        sync: flush the contents to disk before they replace others, for files that cannot be recreated.

    Raises:
        RunError: if the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        temporary.touch(exist_ok=False)
        yield temporary
        if sync:
            sync_path(temporary)
        _rename(temporary, path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            remove(temporary)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write UTF-8 text atomically; `sync` as in `atomic_path`."""
    with atomic_path(path, sync=sync) as temporary:
        write_bytes(temporary, text.encode())


def write_json(path: Path, value: Any, *, sync: bool = False) -> None:
    """Write JSON atomically; NaN and infinities are rejected, because other readers do not accept them."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", sync=sync)


def null_for_nan(value: Any) -> Any:
    """Convert plain values to strict JSON: None instead of NaN and infinities, also inside dictionaries and lists.

    Tuples become lists.
    """
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nan_for_null(values: Mapping[str, float | None]) -> dict[str, float]:
    """Numbers by name with NaN in place of None: the inverse of `null_for_nan`."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DamagedError: if it is not JSON.
        RunError: if the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise DamagedError(f"cannot read {path}: too many values stand within each other") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error}") from None
    except ValueError as error:
        raise DamagedError(f"cannot read {path}: {error}") from None


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it is recreated and nothing is lost; returns its new path.

    Raises:
        RunError: if its folder cannot be written.
    """
    aside = _aside(path)
    try:
        _rename(path, aside)
        return aside
    except OSError as error:
        raise RunError(f"cannot move the damaged {path} aside: {error.strerror or error}; remove it") from None


def copy_aside(path: Path) -> Path:
    """Copy a damaged file to the path that `set_aside` would use, before it is repaired; returns the copy's path.

    Raises:
        RunError: if its folder cannot be written.
    """
    try:
        return copy(path, _aside(path))
    except OSError as error:
        raise RunError(f"cannot keep a copy of the damaged {path}: {error.strerror or error}; free space") from error


def _aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside


MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Exceptions raised by readers if a file contains values of other types than were written."""


def reason(error: BaseException) -> str:
    """Reason of a failed read, as a phrase."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split())[:200] or type(error).__name__
