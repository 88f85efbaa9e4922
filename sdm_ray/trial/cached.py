"""Disk cache of values that several trials share: one process builds a value while the others wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sdm_ray.core.lock import FolderLock, InUse
from sdm_ray.core.progress import WAIT, Progress

T = TypeVar("T")

PATIENCE_SECONDS = 3600
"""Longest wait for a value that another process builds."""


def built_once(
    builds: Mapping[str, Callable[[], Generator[Progress, None, T]]],
    *,
    load: Callable[[str], T | None],
    save: Callable[[str, T], None],
    path: Callable[[str], Path],
) -> Generator[Progress, None, dict[str, T]]:
    """Values of some keys, loaded from the cache, or built and cached.

    One process builds a key at a time. Another process skips that key, and waits only if all its missing keys are being
    built elsewhere. After `PATIENCE_SECONDS` it builds them too; the files stay valid either way.

    Args:
        builds: generator functions that build the values, by the content hash of all their inputs.
        load: loads the value of a key; None if there is no readable one.
        save: stores the value of a key atomically.
        path: file of a key; its lock is beside it.

    Yields:
        Progress of the builds; stage `wait`, in seconds, while other processes build.
    """
    kept: dict[str, T] = {}
    waited = 0
    while True:
        for key in builds.keys() - kept.keys():
            if (found := load(key)) is not None:
                kept[key] = found
        missing = [key for key in builds if key not in kept]
        if not missing:
            return {key: kept[key] for key in builds}
        for key in missing:
            with _turn(path(key).with_suffix(".lock")) as is_ours:
                if not is_ours and waited < PATIENCE_SECONDS:
                    continue
                found = load(key)  # another process may have built it since
                if found is None:
                    found = yield from builds[key]()
                    save(key, found)
                kept[key] = found
                break
        else:
            yield Progress(WAIT, waited, PATIENCE_SECONDS, {})
            time.sleep(1.0)
            waited += 1


def in_turns(*works: Generator[Progress, None, Any]) -> Generator[Progress, None, tuple[Any, ...]]:
    """Run several generators and return their results in order; while one waits for another process, the next runs.

    Args:
        works: independent generators that yield stage `wait` while another process builds a value.

    Yields:
        Their progress; stage `wait` if all remaining ones wait.
    """
    results: list[Any] = [None] * len(works)
    left = list(range(len(works)))
    try:
        while left:
            waiting = None
            for index in tuple(left):
                progress = yield from _until_wait(works[index], index, results, left)
                waiting = waiting if progress is None else progress
            if waiting is not None and left:
                yield waiting
    finally:
        for work in works:
            work.close()  # releases the locks of unfinished generators
    return tuple(results)


def _until_wait(
    work: Generator[Progress, None, Any], index: int, results: list[Any], left: list[int]
) -> Generator[Progress, None, Progress | None]:
    """Run a generator until it waits (returns that progress) or ends (stores its result, returns None)."""
    while True:
        try:
            progress = next(work)
        except StopIteration as end:
            results[index] = end.value
            left.remove(index)
            return None
        if progress.stage == "wait":
            return progress
        yield progress


@contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Hold the lock at `path` during the block, and remove it afterwards; yields False if another process holds it."""
    lock = FolderLock(path)
    try:
        lock.acquire()
    except InUse:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        lock.release()
