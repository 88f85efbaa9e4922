"""What many trials share is built by one of them, and kept on disk by content key."""

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
"""How long something is waited for that another process builds."""


def built_once(
    builds: Mapping[str, Callable[[], Generator[Progress, None, T]]],
    *,
    load: Callable[[str], T | None],
    save: Callable[[str, T], None],
    path: Callable[[str], Path],
) -> Generator[Progress, None, dict[str, T]]:
    """What is kept under some keys; what is not is built and kept.

    One process builds a key at a time. One that finds it being built goes on with the next, and waits where others
    build all that it lacks; after `PATIENCE_SECONDS` it builds as well, and either file is whole.

    Args:
        builds: what makes each, by the content hash of everything that it depends on.
        load: what is kept under a key; None where there is nothing that can be read.
        save: keeps something under a key, atomically.
        path: the file of a key; its lock lies beside it.

    Yields:
        The progress of what is built; stage `wait`, in seconds, while others build.
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
                found = load(key)  # whoever built it may just have ended
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
    """Everything that some works return, in their order; where one waits for another process, the next goes on.

    Args:
        works: each says by stage `wait` that another process builds what it lacks. None needs what another gives.

    Yields:
        Their progress; stage `wait` where all that are left wait.
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
            work.close()  # lets go of the lock of what is given up half-way
    return tuple(results)


def _until_wait(
    work: Generator[Progress, None, Any], index: int, results: list[Any], left: list[int]
) -> Generator[Progress, None, Progress | None]:
    """Go on with a work until it waits, which is returned, or ends, when its result is filled in."""
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
    """Hold the lock at `path` for the block, and remove it after; False where another process holds it."""
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
