"""Reports that many trials share (random initialisation, the pretrained encoder), kept on disk by content key."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sdm_ray.attack.protocol import RunnerFactory, attack_model
from sdm_ray.attack.report import FORMAT_VERSION, AttackReport
from sdm_ray.config import AttackSettings, EncoderSettings, digest
from sdm_ray.core.cache import SharedCache, look_up, offer
from sdm_ray.core.errors import RunError
from sdm_ray.core.lock import FolderLock, InUse
from sdm_ray.core.progress import Progress
from sdm_ray.trial.release import Release, knowledge_of, own_knowledge
from sdm_ray.trial.workspace import Initialisation, Workspace, trunk_params

Build = Callable[[], Generator[Progress, None, AttackReport]]

PATIENCE_SECONDS = 3600
"""How long a report is waited for that another process builds."""


def load_report(key: str, cache_dir: Path, shared: SharedCache | None = None) -> AttackReport | None:
    """The report kept under `key`; None where there is none that can be read."""
    path = _path(key, cache_dir)
    report = look_up(cache_dir, _entry(path), partial(_read, path), shared)
    if report is not None:
        offer(cache_dir, _entry(path), [path], shared)
    return report


def store_report(key: str, cache_dir: Path, report: AttackReport, shared: SharedCache | None = None) -> None:
    """Keep a report under `key`, atomically: readers see the old file or the whole new one."""
    path = _path(key, cache_dir)
    report.write_json(path)
    offer(cache_dir, _entry(path), [path], shared)


def cached_reports(
    builds: Mapping[str, Build], cache_dir: Path, shared: SharedCache | None = None
) -> Generator[Progress, None, dict[str, AttackReport]]:
    """Reports by their keys: those that are kept, and the others built and kept.

    One process builds a report at a time. One that finds it being built goes on with the next, and waits where others
    build all that it lacks; after `PATIENCE_SECONDS` it builds as well, and either file is whole.

    Args:
        builds: what makes each report, by the content hash of everything that the report depends on; a file name.
        cache_dir: reports lie in its folder `floors`.
        shared: where other machines may have put them.

    Yields:
        The progress of what is built; stage `wait`, in seconds, while others build.
    """
    kept: dict[str, AttackReport] = {}
    waited = 0
    while True:
        for key in builds.keys() - kept.keys():
            if (report := load_report(key, cache_dir, shared)) is not None:
                kept[key] = report
        missing = [key for key in builds if key not in kept]
        if not missing:
            return {key: kept[key] for key in builds}
        for key in missing:
            with _turn(_path(key, cache_dir).with_suffix(".lock")) as is_ours:
                if not is_ours and waited < PATIENCE_SECONDS:
                    continue
                report = load_report(key, cache_dir, shared)  # whoever built it may just have ended
                if report is None:
                    report = yield from builds[key]()
                    store_report(key, cache_dir, report, shared)
                kept[key] = report
                break
        else:
            yield Progress("wait", waited, PATIENCE_SECONDS, {})
            time.sleep(1.0)
            waited += 1


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


def _read(path: Path) -> AttackReport | None:
    """A report; None where there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        return AttackReport.read_json(path)
    except RunError:
        return None


def _entry(path: Path) -> str:
    """Name of a report among shared entries."""
    return f"floors/{path.stem}"


def _path(key: str, cache_dir: Path) -> Path:
    return cache_dir / "floors" / f"{key}-v{FORMAT_VERSION}.json"


def floor_report(
    work: Workspace,
    encoder: EncoderSettings,
    settings: AttackSettings,
    initialisation: Initialisation,
    seed: int,
    runner: RunnerFactory | None = None,
) -> Generator[Progress, None, AttackReport]:
    """One of `floor_reports`."""
    reports = yield from floor_reports(work, {initialisation: encoder}, settings, seed, runner)
    return reports[initialisation]


def floor_reports(
    work: Workspace,
    encoders: Mapping[Initialisation, EncoderSettings],
    settings: AttackSettings,
    seed: int,
    runner: RunnerFactory | None = None,
) -> Generator[Progress, None, dict[Initialisation, AttackReport]]:
    """The same attack on encoders as they are, by initialisation: `random` is the floor, `pretrained` the ceiling.

    From the cache when weights, data and attack are the same as before. Nobody who starts from random initialisation
    has the public encoder, or there would be no floor.
    """
    keys: dict[Initialisation, str] = {}
    builds: dict[str, Build] = {}
    for initialisation, encoder in encoders.items():
        trunk = work.trunk(encoder, initialisation, seed)
        knowledge = own_knowledge(trunk)
        if initialisation == "pretrained":
            as_public = Release(trunk=trunk, params=trunk_params(trunk), encoder=encoder)
            knowledge = knowledge_of(work, as_public, settings)
        key = digest([trunk.digest(), work.data.digest, settings.identity(), initialisation])
        keys[initialisation] = key
        builds[key] = partial(
            attack_model,
            trunk,
            trunk_params(trunk),
            work.data,
            settings,
            sampler=work.sampler(settings.sampler),
            knowledge=knowledge,
            runner=runner,
        )
    reports = yield from cached_reports(builds, work.cache_dir, work.context.shared)
    return {initialisation: reports[key] for initialisation, key in keys.items()}
