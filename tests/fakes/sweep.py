"""Fake trial functions with the contract of `sdm_ray.trial.run.iterate_trial`: an analytic response, no training.

They are importable by worker processes as `tests.fakes.sweep:name`. What a trial does is steered by its settings and by
files in the sweep's folder, because no other channel reaches a worker.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdm_ray.config import SweepSettings, TrialSettings, content_hash, parse_settings, to_yaml
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import write_text
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import Status, TrialResult, read_result, write_result
from sdm_ray.meta.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from sdm_ray.trial.context import TrialContext

Steps = Generator[Progress, None, TrialResult]

REFERENCES = {"pretrained": (0.90, 0.95), "random": (0.60, 0.55), "tuned": (0.96, 0.80), "ac": (0.95, 0.75)}
"""(desired, harmful) of the references."""

REFERENCES_IN_ORDER = ["tuned", "pretrained", "random", "ac"]
"""The order in which they run."""

RATE = "train.learning_rate"
WEIGHT = "train.blocking.harmful_adapted_calibrated"


def settings(output_dir: Path, **changes: Any) -> SweepSettings:
    """A small sweep over two settings, untracked."""
    document: dict[str, Any] = {
        "name": "fake",
        "output_dir": str(output_dir),
        "references": list(REFERENCES),
        "trial": {"scratch": {"enabled": False}},
        "space": {
            RATE: {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            WEIGHT: {"type": "float", "low": 0.1, "high": 4.0},
        },
        "search": {"num_trials": 4, "sampler": "random"},
        "tracking": {"enabled": False},
    }
    return parse_settings(
        SweepSettings, document, [f"{path.replace('__', '.')}={value}" for path, value in changes.items()]
    )


def measures(trial: TrialSettings) -> dict[str, float]:
    """A trade-off: more weight blocks more and costs desired accuracy."""
    if trial.train.method in REFERENCES:
        desired, harmful = REFERENCES[trial.train.method]
    else:
        weight = trial.train.blocking.harmful_adapted_calibrated
        desired, harmful = 0.96 - 0.03 * weight, 0.8 - 0.06 * weight
    return {str(Metric.DESIRED_ACCURACY): desired, str(Metric.HARMFUL_WORST_ACCURACY): harmful}


def finish(trial: TrialSettings, output_dir: Path, trial_id: str, metrics: dict[str, float]) -> TrialResult:
    """Write `result.json`, as a trial does last of all, and count this end."""
    result = TrialResult(
        trial_id=trial_id,
        config_hash=content_hash(trial),
        method=trial.train.method,
        seed=trial.seed,
        status=Status.COMPLETE,
        metrics=metrics,
        output_dir=output_dir,
    )
    (output_dir / "result.json").write_text(json.dumps(result.to_dict()))
    note(output_dir, "finished")
    return result


def note(output_dir: Path, event: str) -> None:
    """Append an event to the trial's own log."""
    with (output_dir / "events").open("a") as file:
        file.write(f"{event} {os.getpid()} {time.time()}\n")


def events(output_dir: Path, event: str) -> list[list[str]]:
    """Events of a kind: [process, time]."""
    path = output_dir / "events"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1:] for line in lines if line.split()[0] == event]


def num_steps(sweep_dir: Path) -> int:
    """Steps that all trials of a sweep have done."""
    return sum(path.read_text().count("step") for path in sweep_dir.glob("trials/*/events"))


def finished(output_dir: Path) -> TrialResult | None:
    """The result that is there."""
    path = output_dir / "result.json"
    return TrialResult.from_dict(json.loads(path.read_text()), output_dir) if path.exists() else None


def smooth(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """Two steps and a result, at once."""
    if (result := finished(output_dir)) is not None:
        return result
    note(output_dir, "started")
    for done in (1, 2):
        yield Progress("train", done, 2, {"train/loss": 1.0 / done})
    return finish(trial, output_dir, trial_id, measures(trial))


def slow(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """`num_outer_steps` steps of 0.05 s, with a checkpoint after each; resumes from it."""
    if (result := finished(output_dir)) is not None:
        return result
    note(output_dir, "started")
    checkpoint = output_dir / "checkpoint"
    begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
    try:
        for done in range(begin + 1, trial.train.num_outer_steps + 1):
            time.sleep(0.05)
            note(output_dir, f"step{done}")
            (output_dir / "next").write_text(str(done))
            (output_dir / "next").replace(checkpoint)
            yield Progress("train", done, trial.train.num_outer_steps, {"train/loss": 1.0 / done})
    finally:
        note(output_dir, "closed")
    return finish(trial, output_dir, trial_id, measures(trial))


OUTAGES = "outages"
"""File beside the sweep's folder with the number of outages of its server so far."""


def outlasting(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """As `slow`; the trial of a number, such as t0007, ends only after as many outages of a server (at most 20)."""
    steps = slow(trial, output_dir, trial_id=trial_id)
    file, wanted = output_dir.parents[2] / OUTAGES, 0 if trial.train.method in REFERENCES else int(trial_id[1:])
    try:
        while True:
            progress = next(steps)
            while progress.done == trial.train.num_outer_steps and int(file.read_text()) < min(wanted, 20):
                time.sleep(0.1)
            yield progress
    except StopIteration as stop:
        result: TrialResult = stop.value
        return result


def troubled(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """t0000 raises, t0001 reports NaN, t0002 lacks an objective, t0003 exits; t0004 is killed once, t0005 always.

    The process of t0006 dies after its result, while it waits for its next trial or is reset for it. Where it dies
    before the result has arrived, the next process finds the result. t0007 runs out of memory once, t0008 hangs once,
    t0009 hangs always.
    """
    if (result := finished(output_dir)) is not None:
        return result
    note(output_dir, "started")
    is_first = len(events(output_dir, "started")) == 1
    yield Progress("train", 1, 2, {})
    if trial_id == "t0007" and is_first:
        raise MemoryError
    if trial_id == "t0009" or (trial_id == "t0008" and is_first):
        time.sleep(600)
    metrics = measures(trial)
    if trial_id == "t0000":
        raise RuntimeError("the loss is\nnot finite")
    if trial_id == "t0001":
        metrics[str(Metric.HARMFUL_WORST_ACCURACY)] = float("nan")
    if trial_id == "t0002":
        del metrics[str(Metric.DESIRED_ACCURACY)]
    if trial_id == "t0003":
        raise SystemExit(3)
    if trial_id == "t0005" or (trial_id == "t0004" and is_first):
        os.kill(os.getpid(), signal.SIGKILL)
    result = finish(trial, output_dir, trial_id, metrics)
    if trial_id == "t0006":
        threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return result


def disk_full(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """t0001 and all later ones find the disk full, until there is a file `freed` beside the sweep's."""
    if (result := finished(output_dir)) is not None:
        return result
    note(output_dir, "started")
    yield Progress("train", 1, 2, {})
    if trial_id in ("t0001", "t0002", "t0003", "t0004") and not (output_dir.parents[1] / "freed").exists():
        try:
            raise OSError(errno.ENOSPC, "No space left on device", str(output_dir / "model"))
        except OSError as error:
            raise RunError(f"cannot write the model to {output_dir}: {error.strerror}; free space") from None
    return finish(trial, output_dir, trial_id, measures(trial))


def forgetful(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """One step and a result, whatever lies in the folder."""
    note(output_dir, "started")
    yield Progress("train", 1, 1, {})
    return finish(trial, output_dir, trial_id, measures(trial))


def seeded(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """As `smooth`, with harmful accuracy that rises by 0.01 with the training seed."""
    if (result := finished(output_dir)) is not None:
        return result
    yield Progress("train", 1, 1, {})
    metrics = measures(trial)
    metrics[str(Metric.HARMFUL_WORST_ACCURACY)] += 0.01 * trial.seed
    return finish(trial, output_dir, trial_id, metrics)


def suspect(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """Fails a check of the audit where it is searched, and another one everywhere, which says nothing."""
    yield Progress("train", 1, 1, {})
    is_searched = trial.train.method not in REFERENCES
    metrics = measures(trial) | {str(Metric.AUDIT_PASSED): float(not is_searched)}
    result = finish(trial, output_dir, trial_id, metrics)
    return dataclasses.replace(
        result,
        failed_checks={"information": "hidden, not removed"} if is_searched else {},
        uninformative_checks={"collapse": "fails on random initialisation too"},
    )


def final(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """A final attack that recovers 0.1 more than the trial's, and notes whose model it attacked with what."""
    if (result := finished(output_dir)) is not None:
        return result
    yield Progress("attack", 1, 1, {})
    assert trial.origin is not None
    source = finished(output_dir.parent / trial.origin.trial_id)
    assert source is not None
    attack = {"seed": trial.attack.seed, "points": trial.attack.num_search_trials, "train_seed": trial.seed}
    (output_dir / "attacked.json").write_text(json.dumps(attack | {"of": trial.origin.trial_id}))
    name = str(Metric.HARMFUL_WORST_ACCURACY)
    return finish(trial, output_dir, trial_id, source.metrics | {name: source.metrics[name] + 0.1})


def leak(output_dir: Path) -> None:
    """Record the global state that is found, then spoil it."""
    import numpy as np

    found = [
        os.getpid(),
        random.random(),
        float(np.random.random()),
        float(torch.rand(())),
        torch.get_num_threads(),
        str(torch.get_default_dtype()),
        torch.is_grad_enabled(),
        str(Path.cwd()),
    ]
    (output_dir / "found.json").write_text(json.dumps(found))
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    os.chdir(output_dir)


def leaky(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """Records the global state that it finds, then spoils it."""
    leak(output_dir)
    yield Progress("train", 1, 1, {})
    return finish(trial, output_dir, trial_id, measures(trial))


def climbing(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """A rung after 2 of 4 steps, where it measures what it will measure in the end; it leaves its process spoilt."""
    if (result := finished(output_dir)) is not None:
        return result
    leak(output_dir)
    metrics = measures(trial)
    desired, harmful = (metrics[str(name)] for name in (Metric.DESIRED_ACCURACY, Metric.HARMFUL_WORST_ACCURACY))
    for done in range(1, 5):
        note(output_dir, f"step{done}")
        time.sleep(0.02)
        rung = {Metric.rung_desired(2): desired, Metric.rung_harmful(2): harmful} if done == 2 else {}
        yield Progress("train", done, 4, rung)
        if done == 2:
            time.sleep(1.0)  # a report goes out, and the driver answers
            yield Progress("train", done, 4, {})
    return finish(trial, output_dir, trial_id, metrics)


def starved(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """Never has memory enough."""
    note(output_dir, "started")
    yield Progress("train", 1, 2, {})
    raise MemoryError


def located(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """As `slow`, and notes on which node it runs."""
    import ray

    if finished(output_dir) is None:
        note(output_dir, f"node-{ray.get_runtime_context().get_node_id()}")
    result = yield from slow(trial, output_dir, trial_id=trial_id)
    return result


def cached(
    trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial", context: TrialContext | None = None
) -> Steps:
    """Needs an entry of a cache folder that no other trial sees; builds it where nobody shares it."""
    from sdm_ray.core.cache import fetch, offer

    shared = None if context is None else context.shared
    cache, path = output_dir / "cache", output_dir / "cache" / "floor.json"
    if not fetch(cache, "floor", shared):
        note(output_dir, "built")
        cache.mkdir()
        path.write_text(trial_id)
        offer(cache, "floor", [path], shared)
    yield Progress("train", 1, 1, {})
    return finish(trial, output_dir, trial_id, measures(trial))


def surrounded(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial", context: TrialContext) -> Steps:
    """Notes which samplers of attacks it was given."""
    (output_dir / "samplers.json").write_text(json.dumps(sorted(context.samplers)))
    yield Progress("train", 1, 1, {})
    return finish(trial, output_dir, trial_id, measures(trial))


def kept(trial: TrialSettings, output_dir: Path, *, trial_id: str = "trial") -> Steps:
    """Two steps with a checkpoint after each, and a result, all written as a real trial does; the same in the end."""
    if (result := read_result(output_dir)) is not None:
        return result
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "config.yaml", to_yaml(trial))
    identity, folder, device = {"hash": content_hash(trial)}, output_dir / "checkpoint", torch.device("cpu")
    found = load_checkpoint(folder, identity, device)
    done, weights = (0, torch.zeros(2)) if found is None else (found[0], found[1]["weights"])
    while done < 2:
        done, weights = done + 1, weights + 1
        save_checkpoint(folder, done, identity, {"weights": weights})
        yield Progress("train", done, 2, {"train/loss": 1.0 / done})
    assert weights.tolist() == [2.0, 2.0]
    result = TrialResult(
        trial_id=trial_id,
        config_hash=content_hash(trial),
        method=trial.train.method,
        seed=trial.seed,
        status=Status.COMPLETE,
        metrics=measures(trial),
        output_dir=output_dir,
    )
    write_result(result)
    note(output_dir, "finished")
    return result
