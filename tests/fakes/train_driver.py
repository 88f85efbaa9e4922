"""Trains in a process of its own, so that it can be killed: `python -m tests.fakes.train_driver FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from sdm_ray.meta.trainer import Trainer, TrainOutcome
from tests.fakes.meta import FakeData, MlpTrunk, train_settings

NUM_STEPS = 24


def trainer(folder: Path) -> Trainer:
    """Fresh and persistent adversaries, validation, warm-up and schedule; a checkpoint every three steps."""
    settings = train_settings(
        num_outer_steps=NUM_STEPS,
        log_every_steps=1,
        checkpoint_every_steps=3,
        optimizer="AdamW",
        schedule="OneCycleLR",
        schedule_options={"max_lr": 3e-3, "total_steps": NUM_STEPS},
        warmup_steps=4,
        adversary={"num_steps": 2, "pool": {"size": 3, "lifespan_steps": 4, "subset_size": 20}},
        validation={"every_steps": 2, "min_desired_accuracy": 1.0, "patience": 1000},
    )
    data = FakeData()
    return Trainer(settings, trunk=MlpTrunk(), data=data, seed=0, checkpoint_dir=folder / "checkpoint")


def written(outcome: TrainOutcome) -> str:
    """Everything of an outcome that must not depend on interruptions, exactly."""
    params = {name: value.tolist() for name, value in outcome.params.items()}
    values = [params, outcome.desired_head.tolist(), outcome.log, outcome.trajectory_start, outcome.trajectory_end]
    return json.dumps(values)


def main(folder: Path) -> None:
    """Train to the end, saying every step."""
    torch.set_num_threads(1)
    for progress in trainer(folder).iterate():
        print(progress.done, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
