"""Copies of a sweep's folder and of its trials', where the sweep has a storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdm_ray.config import SweepSettings
from sdm_ray.sweep.cluster.mirror import Mirror, MirrorThread, below, sweep_uri, trials_uri
from sdm_ray.sweep.state.ledger import trial_folder


@contextmanager
def mirrored(settings: SweepSettings, folder: Path) -> Iterator[None]:
    """Copy the sweep's folder to its storage for the time of the block, where it has one."""
    uri = sweep_uri(settings)
    if uri is None:
        yield
        return
    thread = MirrorThread(Mirror(folder, uri, recursive=False))
    try:
        yield
    finally:
        thread.close()


def fetch_trial(settings: SweepSettings, sweep_folder: Path, trial_id: str) -> None:
    """Bring the folder of a trial that ran elsewhere, unless it is here already."""
    uri, folder = trials_uri(settings), trial_folder(sweep_folder, trial_id)
    if uri is not None and not (folder / "result.json").exists():
        Mirror(folder, below(uri, trial_id)).pull()
