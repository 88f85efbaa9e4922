"""Atomic writes, and reads whose errors name the file."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdm_ray.core.errors import RunError, UsageError


def user_path(text: str | Path, setting: str) -> Path:
    """A path as a person writes it, with `~` for a home folder.

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
    """Whether the file exists; False for a name that is too long or a folder that may not be read."""
    with suppress(OSError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder, as `is_file`."""
    with suppress(OSError):
        return path.is_dir()
    return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and is removed when it does not.

    Raises:
        RunError: when the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused: they are not standard JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def null_for_nan(value: Any) -> Any:
    """Plain values as strict JSON takes them: None in place of NaN and infinities, in dictionaries and lists as well.

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
        RunError: when the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise RunError(f"cannot read {path}: too many values stand within each other") from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from None


MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Exceptions that reading raises where a file holds values of other types than were written."""


def reason(error: BaseException) -> str:
    """The reason of a failed read, as a phrase."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split())[:200] or type(error).__name__
