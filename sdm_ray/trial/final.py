"""Final attack on the model that a trial released. Runs without Ray, Optuna and MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from pathlib import Path

import torch

from sdm_ray.config import TrialSettings, content_hash, load_own_modules
from sdm_ray.core.errors import RunError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import Status, TrialResult, read_result, write_result
from sdm_ray.models.export import load_exported
from sdm_ray.trial.assess import assess
from sdm_ray.trial.context import ALONE, TrialContext
from sdm_ray.trial.release import Release
from sdm_ray.trial.run import attack_digest, check_inputs_of, claim_folder
from sdm_ray.trial.workspace import open_workspace, trunk_params, with_pooling


def iterate_final(
    settings: TrialSettings, output_dir: Path, *, trial_id: str = "final", context: TrialContext = ALONE
) -> Generator[Progress, None, TrialResult]:
    """Attack the model that another trial released, yielding wherever it may be interrupted.

    Args:
        settings: the trial's settings, with another attack; `origin.trial_id` identifies the trial, whose folder is
            beside this one.
        output_dir: receives `config.yaml`, `attack.parquet`, `attack.json`, `audit.json` and, last, `result.json`.
        trial_id: name in the sweep.
        context: samplers and shared caches.

    Raises:
        RunError: if the trial has no result or no model.
        UsageError: if the settings cannot work, the folder holds another trial, or the data have changed since the
            trial.
    """
    settings = with_pooling(load_own_modules(settings))
    finished = claim_folder(settings, output_dir)
    if finished is not None:
        return finished
    assert settings.origin is not None
    source = output_dir.parent / settings.origin.trial_id
    before = read_result(source)
    if before is None or not (source / "model").is_dir():
        raise RunError(f"{source} holds no released model to attack")
    torch.set_num_threads(settings.runtime.num_threads)
    work = open_workspace(settings, context)
    check_inputs_of(before, work)
    exported = load_exported(source / "model")
    trunk = exported.trunk.to(work.device)
    head = None if exported.head is None else exported.head.to(work.device)
    release = Release.of(settings, trunk=trunk, params=trunk_params(trunk), desired_head=head)
    found = yield from assess(work, release, settings.attack, seed=settings.seed, scratch=settings.own_scratch())
    found.write(output_dir)
    kept = (
        Metric.COST_TRAIN_SECONDS, Metric.COST_TRAIN_TEXTS, Metric.COST_TRAIN_FLOPS, Metric.COST_DISTIL_SECONDS,
        Metric.COST_DISTIL_TEXTS, Metric.COST_DISTIL_SPEED,
    )  # fmt: skip
    metrics = found.metrics | {str(name): before.metrics[name] for name in kept if name in before.metrics}
    result = dataclasses.replace(
        before,
        trial_id=trial_id,
        config_hash=content_hash(settings),
        status=Status.COMPLETE,
        metrics=metrics,
        output_dir=output_dir,
        provenance=before.provenance | {"attack": attack_digest(settings.attack)},
        **found.checks(),
    )
    write_result(result)
    return result
