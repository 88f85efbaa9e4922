"""Tiny encoders and data in a folder that is the working directory, so that no absolute path is in any setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdm_ray.config import TrialSettings, parse_settings
from tests.fakes import files as helpers

FIRST_WORLD: dict[str, Any] = {"synthetic": {"version": 1}}
"""Of `data`: the world that was the default when the values were recorded; it is part of every content hash."""
ATTACK: dict[str, Any] = {
    "families": ["fine_tune"],
    "num_examples": [4, 8], "num_search_trials": 2, "num_rerun_seeds": 2, "num_steps_min": 2, "num_steps_max": 4,
    "batch_sizes": [4], "learning_rate": {"low": 1e-3, "high": 3e-2},
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "num_outer_steps": 12, "log_every_steps": 4, "checkpoint_every_steps": 4, "desired_batch_size": 8,
    "harmful_batch_size": 8,
}  # fmt: skip


def write(folder: Path) -> Path:
    """Two encoders and a table of biographies, forty towns among them."""
    for kind in ("bert", "modernbert"):
        helpers.write_encoder(folder / kind, kind)
    rows = helpers.make_rows()
    helpers.write_rows(
        folder / "rows.parquet", rows | {"town": [f"town {index % 40}" for index in range(len(rows["text"]))]}
    )
    return folder


def trial(
    folder: Path, encoder: str = "modernbert", *, attack: dict[str, Any] | None = None, **train: Any
) -> TrialSettings:
    """A trial on them; `train` are settings of the training. The working directory must be `folder`."""
    assert Path.cwd() == folder.resolve()
    document = {
        "data": {**FIRST_WORLD, "source": "rows.parquet", "max_length": 24},
        "encoder": {"name": encoder},
        "train": {**TRAIN, **train},
        "attack": {**ATTACK, **(attack or {})},
        "scratch": {"enabled": False},
        "runtime": {"cache_dir": "cache", "device": "cpu"},
    }
    return parse_settings(TrialSettings, document)
