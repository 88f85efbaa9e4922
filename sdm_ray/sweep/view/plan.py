"""Plan of a sweep before it starts: number of trials, resources and expected time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdm_ray.config import SweepSettings
from sdm_ray.config.train import UNTRAINED
from sdm_ray.sweep.cluster.choice import choose_cluster
from sdm_ray.sweep.cluster.connection import cluster, num_fitting
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.models import first_points, ordered_references
from sdm_ray.sweep.view.live import clock

if TYPE_CHECKING:
    from sdm_ray.trial.cost import Probe


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Numbers of trials, resources and, given a probe, expected times."""

    num_points: int
    num_trials: int
    """Number of searched trials, counting seeds."""
    num_references: int
    """Number of trials of references and variants, counting seeds."""
    num_finals: int
    """Maximum number of final attacks, counting seeds."""
    num_at_once: int
    """Number of trials that run at once."""
    resources: dict[str, float]
    """Resources of the cluster, by name."""
    probe: Probe | None
    """Measured cost of training and attack steps; None if not measured."""
    seconds: float | None
    """Expected wall-clock seconds of the sweep, with `num_at_once` trials at once; None without a probe."""
    trial_seconds: dict[str, float]
    """Expected seconds of a trial's parts: `training`, `attack`, `rungs`, `final`; empty without a probe."""


def plan_sweep(settings: SweepSettings, *, probe: Probe | None) -> SweepPlan:
    """Compute how many trials a sweep has, how many run at once, and how long it takes.

    Args:
        settings: the sweep's settings; an external cluster is queried for its resources.
        probe: measured cost of a trial in one process of the cluster, if known.

    Raises:
        UsageError: if the sweep's settings are invalid, or the cluster is too small for a trial.
        RunError: if the cluster does not answer.
    """
    check_sweep(settings)
    resources = _resources(settings)
    num_at_once = num_fitting(settings.resources, dict(resources))
    seeds, references = settings.search.num_seeds, ordered_references(settings)
    num_trials = settings.search.num_trials * seeds
    finals = 0 if settings.final is None else (settings.final.num_points + len(references)) * seeds
    parts = {} if probe is None else _parts(settings, probe)
    seconds = None
    if parts:
        per_trial = parts["training"] + parts["rungs"] + parts["attack"]
        trained = sum(name not in UNTRAINED for name in references) * seeds
        untrained = (len(references) * seeds - trained) * parts["attack"]
        work = (num_trials + trained) * per_trial + untrained + finals * parts["final"]
        seconds = work / num_at_once
        if settings.search.max_hours is not None:
            seconds = min(seconds, settings.search.max_hours * 3600 + per_trial + finals * parts["final"] / num_at_once)
    return SweepPlan(
        num_points=settings.search.num_trials,
        num_trials=num_trials,
        num_references=len(references) * seeds,
        num_finals=finals,
        num_at_once=num_at_once,
        resources=dict(resources),
        probe=probe,
        seconds=seconds,
        trial_seconds=parts,
    )


def describe(plan: SweepPlan, settings: SweepSettings) -> list[str]:
    """Format the plan as lines."""
    search, seeds = settings.search, settings.search.num_seeds
    conditional = sum(bool(distribution.when) for distribution in settings.space.values())
    lines = [
        f"sweep {settings.name}: {plan.num_points} points of {seeds} seed(s), {plan.num_references} reference trials"
        + (f", {plan.num_finals} final attacks" if plan.num_finals else ""),
        "no search: the references alone"
        if not search.num_trials
        else f"search: {search.sampler} over {len(settings.space)} settings ({conditional} conditional), "
        f"{len(first_points(settings))} points given; objectives "
        + ", ".join(f"{objective.metric} ({objective.direction})" for objective in settings.objectives),
    ]
    limits = [
        f"{name} {value:g}"
        for name, value in (("max_hours", search.max_hours), ("max_gpu_hours", search.max_gpu_hours))
        if value is not None
    ]
    if limits:
        lines.append(f"budget: {', '.join(limits)}")
    if settings.trial.rungs:
        steps = ", ".join(str(rung.step) for rung in settings.trial.rungs)
        lines.append(f"rungs after {steps} of {settings.trial.train.num_outer_steps} outer steps")
    there = ", ".join(f"{amount:g} {kind}" for kind, amount in plan.resources.items() if kind in ("CPU", "GPU"))
    each = settings.resources
    lines.append(
        f"a trial takes {each.cpus_per_trial:g} CPU and {each.gpus_per_trial:g} GPU of {there}: "
        f"{plan.num_at_once} at once"
    )
    if plan.probe is not None and plan.seconds is not None:
        parts = ", ".join(f"{name} {clock(value)}" for name, value in plan.trial_seconds.items() if value)
        lines += [
            f"probe ({plan.probe.device}): {plan.probe.seconds_per_step * 1e3:.1f} ms an outer step, "
            f"{plan.probe.seconds_per_fine_tune:.2f} s a fine-tune, {plan.probe.memory_bytes / 2**30:.1f} GiB",
            f"expected for one trial: {parts}",
            f"expected in all: {clock(plan.seconds)}; floors, import and start-up come on top",
        ]
    return lines


def _parts(settings: SweepSettings, probe: Probe) -> dict[str, float]:
    trial = settings.trial
    rungs = sum(probe.attack_seconds(trial.rung_attack(index), trial.attack) for index in range(len(trial.rungs)))
    final = 0.0 if settings.final is None else probe.attack_seconds(settings.final_attack(), trial.attack)
    return {
        "training": probe.training_seconds(trial),
        "rungs": rungs,
        "attack": probe.attack_seconds(trial.attack, trial.attack),
        "final": final,
    }


def _resources(settings: SweepSettings) -> Mapping[str, float]:
    if choose_cluster(settings.resources).is_private:
        import torch

        return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    import ray

    with cluster(settings.resources.model_copy(update={"cpus_per_trial": 0.001, "gpus_per_trial": 0.0})):
        found: dict[str, float] = ray.cluster_resources()
        return found
