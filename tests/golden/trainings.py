"""Short trainings: digests of what they end with, and their logs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sdm_ray.config import TrialSettings
from sdm_ray.data.regression import RegressionWorld
from sdm_ray.meta.trainer import Trainer, TrainOutcome
from sdm_ray.models.mlp import VectorMlp
from sdm_ray.models.trunk import params_digest
from sdm_ray.trial.workspace import general_sources, open_workspace
from tests.fakes.meta import FakeData, MlpTrunk, drive, train_settings
from tests.golden import pins, worlds

POOL = {"num_steps": 0, "pool": {"size": 3, "lifespan_steps": 4, "subset_size": 20, "frozen_probability": 0.3}}
BOTH = {**POOL, "num_steps": 2, "optimizers": ["sgd", "adam"], "frozen_probability": 0.3, "subset_size": 30}
VARIED = {
    "num_adversaries": 3, "num_steps": 3, "num_steps_min": 1, "growing_steps": 6,
    "optimizers": ["sgd", "momentum", "adam", "adamw", "rmsprop"], "learning_rate_schedules": ["warmup", "cosine"],
    "head": "mixture", "frozen_probability": 0.2, "partly_frozen_probability": 0.2, "lora_probability": 0.2,
    "lora_ranks": [1, 2], "parameter_noise": 0.1, "batch_sizes": [4],
}  # fmt: skip
EVERYTHING = {
    "adversary": {**VARIED, "pool": {**POOL["pool"], "second_order": True, "steps_per_turn": 2}},  # type: ignore[dict-item]
    "gradient_mode": "adjoint", "outer_steps": "sampled", "num_outer_evaluations": 2, "accumulation_steps": 2,
    "blocking": {
        "harmful_base": 0.1, "harmful_adapted_entropy": 1.0, "adapted_grad_norm": 0.1, "desired_adapted": 0.2,
        "desired_adapted_harmful": 0.2, "mutual_information": 0.3, "gradient_coupling": 0.1,
    },
    "optimizer": "AdamW", "optimizer_options": {"weight_decay": 0.1}, "schedule": "CosineAnnealingLR",
    "schedule_options": {"T_max": 12},
}  # fmt: skip
FRESH: dict[str, Any] = {"adversary": {"num_steps": 2}}
KINDS: dict[str, dict[str, Any]] = {
    "pretrained": {"method": "pretrained"},
    "tuned": {"method": "tuned"},
    "ac": {"method": "ac"},
    "fresh": FRESH,
    "fresh-log-uniform": {"adversary": {"num_steps": 2, "learning_rate_mode": "log_uniform", "head": "reset"}},
    "fresh-fixed": {"adversary": {"num_steps": 2, "learning_rate_mode": "fixed"}, "outer_steps": "last"},
    "first-order": {**FRESH, "gradient_mode": "first_order"},
    "truncated": {"adversary": {"num_steps": 3}, "gradient_mode": "truncated", "truncation_steps": 1},
    "pool": {"adversary": POOL},
    "both": {"adversary": BOTH, "blocking": {"harmful_base": 0.5, "harmful_adapted_calibrated": 1.0}},
    "everything": EVERYTHING,
    "validation": {**FRESH, "validation": {"every_steps": 4, "fraction": 0.2}},
    "stopped": {**FRESH, "validation": {"every_steps": 3, "min_desired_accuracy": 1.0, "patience": 1}},
    "embedding-map": {"method": "ac", "embedding_map_learning_rate": 1e-2},
    "sgd": {**FRESH, "optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "warmup_steps": 3},
    "rmsprop": {**FRESH, "optimizer": "RMSprop", "schedule": "StepLR", "schedule_options": {"step_size": 4}},
    "adamax": {**FRESH, "optimizer": "Adamax", "schedule": "LinearLR", "schedule_options": {"total_iters": 8}},
    "plateau-free": {**FRESH, "optimizer": "NAdam", "schedule": "ExponentialLR", "schedule_options": {"gamma": 0.9}},
    "clipped": {**FRESH, "gradient_clip": 0.05, "accumulation_steps": 3, "num_outer_steps": 10},
    "tar": {**FRESH, "blocking": {"harmful_adapted_entropy": 1.0}},
    "sophon": {**FRESH, "blocking": {"harmful_adapted_inverse": 0.5, "harmful_adapted_uniform": 0.5}},
    "clamped": {**FRESH, "blocking": {"harmful_adapted_clamped": 1.0, "harmful_adapted": 0.1}},
}  # fmt: skip
FLOAT32 = ("tuned", "ac", "fresh", "pool", "everything", "validation", "sgd")
RETAINING: dict[str, Any] = {
    "blocking": {
        "harmful_adapted_calibrated": 1.0, "retain_mlm": 0.1, "retain_distill": 0.3, "retain_representation": 0.2,
    },
    "adversary": {"num_steps": 1, "batch_sizes": [4]},
    "retain": {"batch_size": 4, "mask_share": 0.3},
}  # fmt: skip


def synthetic(changes: dict[str, Any], dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    """A training on the world without text."""
    return trained(Trainer(train_settings(**changes), trunk=MlpTrunk(dtype=dtype), data=FakeData(), seed=1))


def bfloat16(folder: Path) -> dict[str, Any]:
    """A training under autocast."""
    settings = train_settings(**FRESH, precision="bfloat16")
    return trained(Trainer(settings, trunk=MlpTrunk(dtype=torch.float32), data=FakeData(), seed=1))


def regression(folder: Path) -> dict[str, Any]:
    """A training on vectors with real-valued targets."""
    data = RegressionWorld(400, 0, input_dim=8)
    adversary = {"num_steps": 3, "learning_rate_initial": 0.01, "learning_rate": {"low": 1e-4, "high": 0.1}}
    settings = train_settings(adversary=adversary, blocking={"harmful_adapted_calibrated": 1.0, "harmful_adapted": 0.1})
    return trained(Trainer(settings, trunk=VectorMlp(8, 16, 2, seed=0), data=data, seed=1))


def encoder(changes: dict[str, Any], kind: str, folder: Path) -> dict[str, Any]:
    """A training of a tiny encoder on biographies."""
    settings = worlds.trial(folder, kind, **{"num_outer_steps": 8, "log_every_steps": 4, **changes})
    return trained(trainer(settings))


def trainer(settings: TrialSettings) -> Trainer:
    """The trainer that a trial would use."""
    work = open_workspace(settings)
    trunk = work.trunk(settings.encoder, "pretrained", settings.seed)
    general = general_sources(work, settings, trunk)
    return Trainer(settings.train, trunk=trunk, data=work.data, seed=settings.seed, general=general)


def trained(made: Trainer) -> dict[str, Any]:
    """What a training ends with."""
    outcome, progress = drive(made)
    assert outcome is not None
    return {**of_outcome(outcome), "progress": [[seen.stage, seen.done, seen.total] for seen in progress]}


def of_outcome(outcome: TrainOutcome) -> dict[str, Any]:
    """The parts of a trained model that are pinned."""
    return {
        "weights": pins.PREFIX + params_digest(outcome.params),
        "params": dict(outcome.params),
        "desired_head": outcome.desired_head,
        "log": outcome.log,
        "stopped": outcome.stopped,
        "trajectory_start": outcome.trajectory_start,
        "trajectory_end": outcome.trajectory_end,
    }


DOUBLE: dict[str, Callable[[Path], Any]] = {
    name: partial(synthetic, changes, torch.float64) for name, changes in KINDS.items()
}
SINGLE: dict[str, Callable[[Path], Any]] = {
    **{name: partial(synthetic, KINDS[name], torch.float32) for name in FLOAT32},
    "bfloat16": bfloat16,
    "regression": regression,
    "encoder/modernbert": partial(encoder, {"adversary": BOTH | {"batch_sizes": [4]}}, "modernbert"),
    "encoder/retaining": partial(encoder, RETAINING, "bert"),
    "encoder/dropout": partial(encoder, {**FRESH, "dropout": "sampled"}, "bert"),
}
