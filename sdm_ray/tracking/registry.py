"""MLflow's model registry: a trial's model becomes a version, and the best one gets the alias `champion`.

Versions use MLflow's transformers flavour: `mlflow.transformers.load_model("models:/NAME@champion")` returns a Hugging
Face pipeline, or with `return_type="components"` the model and its tokenizer.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import FINAL, Status
from sdm_ray.frontier.select import refuse_scratch
from sdm_ray.models.export import META, ExportMeta, load_exported, read_meta
from sdm_ray.tracking.address import masked
from sdm_ray.tracking.artifacts import check_weights, model_folder
from sdm_ray.tracking.naming import tag_values
from sdm_ray.tracking.runs import TrackedRun, connect, find_trial

CHAMPION = "champion"
FOLDER = "registered-model"
"""Folder of the registered model among the run's artifacts."""
TOLERANCE = 0.005
"""Desired accuracies within this difference count as equal."""
TAG = "sdm_ray."
SHOWN = (
    Metric.DESIRED_ACCURACY, Metric.HARMFUL_WORST_ACCURACY, Metric.REGRET_ACCURACY, Metric.RECOVERED_SHARE,
    Metric.AUDIT_PASSED,
)  # fmt: skip
"""Metrics that a version has as tags."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """Version of a registered model."""

    name: str
    version: str
    alias: str | None
    """None if it was not promoted."""
    uri: str
    """Argument for `mlflow.transformers.load_model`."""
    replaced: str | None = None
    """Version that had the alias before."""


def register(
    run: TrackedRun, name: str, *, alias: str = CHAMPION, promote: bool = True, force: bool = False
) -> Registered:
    """Register the model of a trial's run as a version; a run that already has one keeps it.

    Args:
        run: the trial.
        name: name of the registered model, created if needed.
        alias: alias for the version.
        promote: give it the alias. Refused, with nothing registered, if the trial is infeasible, fails the audit or is
            no better than training from scratch; if the current holder of the alias was measured on other data or by
            another attack; or if that holder is as good at the desired task (within `TOLERANCE`) and leaves an attacker
            less.
        force: promote regardless of these checks.

    Raises:
        UsageError: if the run has no model in this flavour, or may not be promoted.
        RunError: if the registry does not answer or does not support aliases.
    """
    client = connect(run.uri)
    with model_folder(run) as folder, _registry(run.uri, name):
        measured = find_trial(run.uri, run.sweep_id, f"{run.trial_id}{FINAL}") or run
        tags = _tags(run, measured, _meta(folder, run))
        before = _holder(client, run.uri, name, alias) if promote else None
        if promote and not force:
            _refuse_unworthy(measured, tags, before, name, alias)
        found = _version_of(client, name, run.run_id) or _create(client, run, folder, name, tags)
        if promote:
            client.set_registered_model_alias(name, alias, found)
    uri = f"models:/{name}@{alias}" if promote else f"models:/{name}/{found}"
    old = None if before is None or str(before.version) == found else str(before.version)
    return Registered(name=name, version=found, alias=alias if promote else None, uri=uri, replaced=old)


def _meta(folder: Path, run: TrackedRun) -> ExportMeta:
    if not (folder / META).is_file():
        raise UsageError(f"{folder} is not a model that sdm-ray exported, so run {run.run_id} cannot be registered")
    meta = read_meta(folder)
    pooling = meta.settings.encoder.pooling
    if pooling != "native":
        raise UsageError(
            f"run {run.run_id} ({run.name}) pools by {pooling!r}, for which Hugging Face has no classification "
            "model to register; train with encoder.pooling=native"
        )
    check_weights(run, load_exported(folder).params, folder)
    return meta


def _tags(run: TrackedRun, measured: TrackedRun, meta: ExportMeta) -> dict[str, str]:
    """Metrics of a version, the data they were measured on, and its origin."""
    values: dict[str, Any] = {TAG + str(name): measured.metrics.get(str(name)) for name in SHOWN}
    values |= {
        f"{TAG}attack": measured.tags.get("provenance.attack"),
        f"{TAG}measured_by": measured.run_id,
        f"{TAG}data": run.tags.get("provenance.data"),
        f"{TAG}weights": run.tags.get("provenance.weights"),
        f"{TAG}config_hash": meta.config_hash,
        f"{TAG}status": run.tags.get("status"),
        f"{TAG}trial_id": run.trial_id,
        f"{TAG}sweep_id": run.sweep_id,
    }
    return tag_values(values)


def _refuse_unworthy(run: TrackedRun, tags: Mapping[str, str], before: Any, name: str, alias: str) -> None:
    """Raise if a version may not be promoted."""
    who, hint = f"run {run.run_id} ({run.name})", "nothing is registered; --force promotes it all the same"
    status, passed = run.tags.get("status"), run.metrics.get(str(Metric.AUDIT_PASSED))
    if status != Status.COMPLETE:
        raise UsageError(f"{who} is {status}: {run.tags.get('error', 'no reason is on record')}; {hint}")
    if passed != 1.0:
        reason = "was not audited" if passed is None else "fails the audit (audit.json among its artifacts says where)"
        raise UsageError(f"{who} {reason}; {hint}")
    refuse_scratch(who, run.metrics, hint)
    if before is None or before.tags.get(f"{TAG}measured_by") == run.run_id:
        return
    theirs = before.tags
    for key, difference in ((f"{TAG}data", "on other data"), (f"{TAG}attack", "by another attack")):
        if theirs.get(key) != tags.get(key):
            raise UsageError(f"version {before.version} of {name!r}, the {alias}, was measured {difference}; {hint}")
    desired, harmful = (
        tuple(_number(values, metric) for values in (tags, theirs))
        for metric in (Metric.DESIRED_ACCURACY, Metric.HARMFUL_WORST_ACCURACY)
    )
    if any(map(math.isnan, (*desired, *harmful))):
        raise UsageError(f"{who} or version {before.version} of {name!r} lacks an accuracy to compare; {hint}")
    if desired[1] >= desired[0] - TOLERANCE and harmful[1] < harmful[0]:
        raise UsageError(
            f"{who} (desired {desired[0]:.3f}, harmful {harmful[0]:.3f}) is worse than version {before.version} of "
            f"{name!r}, the {alias} (desired {desired[1]:.3f}, harmful {harmful[1]:.3f}); {hint}"
        )


def _number(tags: Mapping[str, str], metric: str) -> float:
    return float(tags.get(TAG + metric, "nan"))


def _holder(client: Any, uri: str, name: str, alias: str) -> Any:
    """Version that an alias points to; None if there is none.

    Raises:
        RunError: if the registry does not support aliases.
    """
    from mlflow.exceptions import MlflowException

    no_aliases = RunError(
        f"the registry at {masked(uri)} has no aliases: nothing is registered; upgrade the server to MLflow 2.3 or "
        "later, or register without one (--no-promote)"
    )
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        if error.error_code == "ENDPOINT_NOT_FOUND":
            raise no_aliases from None
        raise
    except NotImplementedError:
        raise no_aliases from None


def _version_of(client: Any, name: str, run_id: str) -> str | None:
    """Version that a run was registered as."""
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


def _create(client: Any, run: TrackedRun, folder: Path, name: str, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    created = True
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        created = False
    try:
        with tempfile.TemporaryDirectory(prefix="sdm-ray-") as temporary:
            flavour = Path(temporary) / FOLDER
            _save(folder, flavour)
            client.log_artifacts(run.run_id, str(flavour), FOLDER)
        source = f"{client.get_run(run.run_id).info.artifact_uri}/{FOLDER}"
        return str(client.create_model_version(name, source, run_id=run.run_id, tags=dict(tags)).version)
    except BaseException:
        if created:
            client.delete_registered_model(name)
        raise


def _save(folder: Path, flavour: Path) -> None:
    """Save an exported folder in MLflow's transformers flavour; requirements are explicit because MLflow infers wrong
    ones."""
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    card = folder / "README.md"
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": tokenizer},
        str(flavour),
        task="text-classification",
        pip_requirements=[f"{package}=={version(package)}" for package in ("transformers", "torch")],
        model_card=ModelCard(card.read_text(encoding="utf-8")) if card.is_file() else None,
    )


@contextmanager
def _registry(uri: str, name: str) -> Iterator[None]:
    """Turn errors of the registry into a one-sentence `RunError`, and silence its libraries."""
    from mlflow.exceptions import MlflowException
    from transformers.utils import logging as hf_logging

    noisy = logging.getLogger("mlflow.transformers")
    level, bar = noisy.level, hf_logging.is_progress_bar_enabled()
    noisy.setLevel(logging.ERROR)
    with suppress(AttributeError):
        hf_logging.disable_progress_bar()
    try:
        yield
    except (MlflowException, OSError) as error:
        raise RunError(
            f"the registry at {masked(uri)} refused the model {name!r}: {' '.join(str(error).split())[:300]}"
        ) from None
    finally:
        noisy.setLevel(level)
        if bar:
            hf_logging.enable_progress_bar()
