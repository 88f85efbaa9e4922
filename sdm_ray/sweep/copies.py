"""Copies the folders of a sweep and its trials to and from `storage_path`, if it is set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdm_ray.config import SweepSettings
from sdm_ray.sweep.cluster.mirror import Mirror, MirrorThread, below, sweep_uri, trials_uri
from sdm_ray.sweep.state.ledger import trial_folder


@contextmanager
def mirrored(settings: SweepSettings, folder: Path) -> Iterator[None]:
    """Copy the sweep's own files to its storage periodically during the block; does nothing without `storage_path`."""
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
    """Download the folder of a trial that ran on another node, unless its result exists locally."""
    uri, folder = trials_uri(settings), trial_folder(sweep_folder, trial_id)
    if uri is not None and not (folder / "result.json").exists():
        Mirror(folder, below(uri, trial_id)).pull()
