"""Whole trials on tiny encoders, content hashes of configs, and digests of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sdm_ray.attack.report import AttackReport
from sdm_ray.config import (
    SweepSettings,
    SyntheticWorld,
    TrialSettings,
    content_hash,
    digest,
    load_settings,
    override,
    parse_settings,
)
from sdm_ray.config.train import UNTRAINED
from sdm_ray.core.result import TrialResult
from sdm_ray.trial.run import run_trial
from sdm_ray.trial.workspace import open_workspace
from tests.golden import attacks, pins, worlds

SWEEPS = Path(__file__).parents[2] / "sweeps"
POOL = {"num_steps": 2, "pool": {"size": 2, "subset_size": 8}, "batch_sizes": [8]}
METHODS: dict[str, dict[str, Any]] = {
    "tuned": {"method": "tuned"},
    "ac": {"method": "ac"},
    "mlac-pool": {"adversary": POOL},
    "pretrained": {"method": "pretrained"},
    "random": {"method": "random"},
    "stopped": {"adversary": POOL, "validation": {"every_steps": 2, "min_desired_accuracy": 1.0}},
}
VECTORS: dict[str, Any] = {
    "data": {**worlds.FIRST_WORLD, "source": "regression", "regression": {"num_examples": 600, "input_dim": 8}},
    "encoder": {"name": "mlp", "width": 16},
    "train": {**worlds.TRAIN, "adversary": POOL},
    "attack": {**worlds.ATTACK, "families": ["fine_tune", "knn"]},
    "runtime": {"device": "cpu", "cache_dir": "cache"},
}
VERSIONS = ("sdm_ray", "torch", "transformers", "device")
OF_WEIGHTS = ("weights", "encoder")
"""Provenances that are digests of weights."""


def of_method(train: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    """A trial of a method on biographies.

    The first trial of a process also attacks the reference models, whose reports later trials find in the cache. So a
    tuned trial goes before those that attack nothing else: their stages must not depend on which cases ran before.
    """
    if train.get("method") in UNTRAINED:
        run_trial(worlds.trial(folder, **METHODS["tuned"]), folder / "before")
    return run(override(worlds.trial(folder, **train), changes), folder)


def vectors(folder: Path) -> dict[str, Any]:
    """A trial on vectors."""
    return run(parse_settings(TrialSettings, VECTORS), folder)


def run(settings: TrialSettings, folder: Path) -> dict[str, Any]:
    """A trial to its end in a folder of its own, or what is there of the same trial."""
    output_dir = folder / "trials" / content_hash(settings)
    stages: list[str] = []
    result = run_trial(settings, output_dir, trial_id="golden", on_progress=lambda seen: stages.append(str(seen.stage)))
    report = AttackReport.read_json(output_dir / "attack.json") if (output_dir / "attack.json").exists() else None
    return {
        "result": of_result(result),
        "stages": sorted(set(stages)),
        "files": sorted(str(path.relative_to(output_dir)) for path in output_dir.rglob("*") if path.is_file()),
        "attack": None if report is None else attacks.of_report(report),
    }


def of_result(result: TrialResult) -> dict[str, Any]:
    """The parts of a result that are pinned."""
    provenance = {name: value for name, value in result.provenance.items() if name not in VERSIONS}
    weights = {name: pins.PREFIX + provenance[name] for name in OF_WEIGHTS if name in provenance}
    return {
        "trial_id": result.trial_id,
        "config_hash": result.config_hash,
        "method": result.method,
        "seed": result.seed,
        "status": str(result.status),
        "error": result.error,
        "metrics": attacks.without_seconds(result.metrics),
        "provenance": provenance | weights,
    }


def hashes(folder: Path) -> dict[str, Any]:
    """Content hashes of configs."""
    plain = override(TrialSettings(), {"data": worlds.FIRST_WORLD})
    methods = {method: plain.train.for_method(method) for method in ("pretrained", "random", "tuned", "ac", "mlac")}  # type: ignore[arg-type]
    return {
        "default": content_hash(plain),
        "sweep": content_hash(SweepSettings(space={})) if not SweepSettings.model_fields["space"].is_required() else "",
        "methods": {name: content_hash(plain.model_copy(update={"train": train})) for name, train in methods.items()},
        "named": content_hash(override(plain, {"name": "other", "runtime.num_threads": 2})),
        "seed": content_hash(override(plain, {"seed": 1})),
        "vectors": content_hash(parse_settings(TrialSettings, VECTORS)),
        "presets": {
            name: digest(override(plain, {"attack": {"preset": name}}).attack.model_dump(mode="json"))
            for name in ("quick", "standard", "paper", "worst-case")
        },
        "sweeps": {path.stem: of_file(path) for path in sorted(SWEEPS.glob("*.yaml"))},
    }


def of_file(path: Path) -> str:
    """Content hash of a config of the repository."""
    kind: Any = TrialSettings if path.stem == "trial" else SweepSettings
    return content_hash(load_settings(kind, path))


def data(changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Digest and sizes of tokenised data."""
    settings = override(parse_settings(TrialSettings, {"runtime": {"cache_dir": "cache", "device": "cpu"}}), changes)
    return {"digest": open_workspace(settings).data.digest}


def rows(changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Digest of biographies in a file."""
    return {"digest": open_workspace(override(worlds.trial(folder), changes)).data.digest}


CASES: dict[str, Callable[[Path], Any]] = {
    **{name: partial(of_method, train) for name, train in METHODS.items()},
    "rungs": partial(
        of_method, {"adversary": POOL}, rungs=[{"step": 4}, {"step": 8, "attack": {"num_search_trials": 3}}]
    ),
    "vectors": vectors,
}
SMALL = SyntheticWorld(version=1).model_dump() | {"num_examples": 400}
EXACT: dict[str, Callable[[Path], Any]] = {
    "hashes": hashes,
    "data/synthetic": partial(data, {"data.synthetic": SMALL}),
    "data/scrubbed": partial(data, {"data.synthetic": SMALL, "data.scrub_pronouns": True, "data.max_examples": 300}),
    "data/vectors": partial(data, {"data": VECTORS["data"], "encoder": VECTORS["encoder"]}),
    "data/rows": partial(rows, {}),
    "data/grouped": partial(rows, {"data.group_column": "town", "data.split_seed": 3}),
}
