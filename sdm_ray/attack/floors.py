"""Reports that many trials share (random initialisation, the pretrained encoder), kept on disk by content key."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from sdm_ray import shelf
from sdm_ray.attack.report import FORMAT_VERSION, AttackReport
from sdm_ray.errors import RunError
from sdm_ray.types import Progress


def load_report(key: str, cache_dir: Path) -> AttackReport | None:
    """The report kept under `key`; None where there is none that can be read."""
    path = _path(key, cache_dir)
    report = shelf.look_up(cache_dir, _entry(path), partial(_read, path))
    if report is not None:
        shelf.offer(cache_dir, _entry(path), [path])
    return report


def store_report(key: str, cache_dir: Path, report: AttackReport) -> None:
    """Keep a report under `key`, atomically: readers see the old file or the whole new one."""
    path = _path(key, cache_dir)
    report.write_json(path)
    shelf.offer(cache_dir, _entry(path), [path])


def cached_report(
    key: str, cache_dir: Path, build: Callable[[], Generator[Progress, None, AttackReport]]
) -> Generator[Progress, None, AttackReport]:
    """The report kept under `key`, built and kept if there is none or it is damaged.

    Two processes that miss at once both build, and either file is whole.

    Args:
        key: content hash of everything that the report depends on; a file name.
        cache_dir: reports lie in its folder `floors`.
        build: makes the report.

    Yields:
        The progress of `build`.
    """
    report = load_report(key, cache_dir)
    if report is None:
        report = yield from build()
        store_report(key, cache_dir, report)
    return report


def _read(path: Path) -> AttackReport | None:
    """A report; None where there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        return AttackReport.read_json(path)
    except RunError:
        return None


def _entry(path: Path) -> str:
    """Name of a report on the shelf."""
    return f"floors/{path.stem}"


def _path(key: str, cache_dir: Path) -> Path:
    return cache_dir / "floors" / f"{key}-v{FORMAT_VERSION}.json"
