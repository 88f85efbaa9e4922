"""Tags, artifacts and inputs of the run of an ended trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sdm_ray.core.result import Status, TrialResult
from sdm_ray.tracking.naming import tag_values
from sdm_ray.tracking.series import FAILED_CHECKS

MAX_SAID = 300
"""Most characters of a failed check's observation in a run's tag."""
RUN_STATUS = {
    Status.COMPLETE: "FINISHED",
    Status.INFEASIBLE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.STOPPED: "KILLED",
}
ARTIFACTS = (
    "config.yaml", "result.json", "train.parquet", "trajectory.parquet", "trajectory.png", "attack.parquet",
    "attack.json", "audit.json", "model/README.md",
)  # fmt: skip
"""Files of a trial's folder that become artifacts; a tag holds the folder's path."""
MODEL = "model"
"""Folder of the released model, both in the trial's folder and among the artifacts (`tracking.log_models`)."""


def result_tags(result: TrialResult, kept: Mapping[str, str]) -> dict[str, str]:
    """Tags of a result; `kept` are the tags of metrics that are not logged."""
    tags = {
        "status": str(result.status),
        "method": result.method,
        "config_hash": result.config_hash,
        "seed": result.seed,
        "output_dir": result.output_dir,
        "error": result.error,
        FAILED_CHECKS: _checks(result.failed_checks),
        **{f"provenance.{name}": value for name, value in result.provenance.items()},
        **kept,
    }
    return tag_values(tags)


def artifacts(result: TrialResult, *, with_model: bool) -> list[str]:
    """Paths of the artifacts, including the model if requested."""
    folder = result.output_dir.absolute()
    whole = [str(folder / MODEL)] if with_model else []
    return [*(str(folder / name) for name in ARTIFACTS), *whole]


def inputs(provenance: Mapping[str, str]) -> list[dict[str, str]]:
    """Data and encoder as MLflow inputs of a run."""
    named = (("data", "data_source", "meta-training and attack"), ("encoder", "encoder_name", "encoder"))
    return [
        {
            "name": Path(provenance[name]).name,
            "digest": provenance[digest],
            "source": provenance[name],
            "context": context,
        }
        for digest, name, context in named
        if provenance.get(digest) and provenance.get(name)
    ]


def _checks(failed: Mapping[str, str]) -> str | None:
    """Tag of failed checks; None if none failed."""
    return json.dumps({name: said[:MAX_SAID] for name, said in failed.items()}) if failed else None
