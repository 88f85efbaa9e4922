"""One config in, one result out: train, release, attack. Runs without Ray, Optuna and MLflow."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdm_ray.attack.evaluate import attack_model
from sdm_ray.attack.plan import check_data
from sdm_ray.config import TrialSettings, content_hash, to_yaml
from sdm_ray.errors import UsageError
from sdm_ray.evaluate import (
    Initialisation,
    Workspace,
    attack_untrained,
    floor_report,
    load_trunk_on,
    open_workspace,
    release_metrics,
)
from sdm_ray.export import export_model
from sdm_ray.files import atomic_path, read_json, write_json, write_text
from sdm_ray.meta.trainer import Trainer
from sdm_ray.models.encoder import params_digest
from sdm_ray.progress import run_through
from sdm_ray.types import Metric, Progress, Status, Task, TrialResult

if TYPE_CHECKING:
    from sdm_ray.meta.trainer import TrainOutcome


def iterate_trial(
    settings: TrialSettings, output_dir: Path, *, trial_id: str = "trial"
) -> Generator[Progress, None, TrialResult]:
    """Train, release and attack one model, yielding wherever it may be interrupted.

    Called again with the same settings and folder, it resumes from its last checkpoint, or returns the result that is
    already there.

    Args:
        settings: the trial.
        output_dir: its folder: `config.yaml`, `checkpoint/` while it trains, then `train.parquet`, `attack.parquet`,
            `attack.json`, `model/` and, last of all, `result.json`.
        trial_id: name of the trial in its sweep.

    Raises:
        UsageError: when the settings cannot work, or the folder holds another trial.
        RunError: when training diverges or a file cannot be written.
    """
    finished = _claim_folder(settings, output_dir)
    if finished is not None:
        return finished
    torch.set_num_threads(settings.runtime.num_threads)
    work = open_workspace(settings)
    check_data(work.data, settings.attack, Task.HARMFUL)  # before hours of training, not after
    initialisation: Initialisation = "random" if settings.train.method == "random" else "pretrained"
    trunk = load_trunk_on(work, settings.encoder, initialisation, settings.seed)
    provenance = _provenance(work, trunk.digest())
    trainer = Trainer(
        settings.train, trunk=trunk, data=work.data, seed=settings.seed, checkpoint_dir=output_dir / "checkpoint"
    )
    outcome = yield from trainer.iterate()
    _write_log(outcome, output_dir / "train.parquet")

    start = time.perf_counter()
    if settings.train.method in ("pretrained", "random"):
        report = yield from attack_untrained(work, trunk, settings.attack)
    else:
        report = yield from attack_model(trunk, outcome.params, work.data, settings.attack)
    attack_seconds = time.perf_counter() - start
    floor = yield from floor_report(work, settings.encoder, settings.attack, "random", settings.seed)
    metrics = release_metrics(
        work, report, floor, trunk=trunk, params=outcome.params, desired_head=outcome.desired_head
    ) | {str(Metric.COST_TRAIN_SECONDS): outcome.seconds, str(Metric.COST_ATTACK_SECONDS): attack_seconds}
    report.write_parquet(output_dir / "attack.parquet")
    report.write_json(output_dir / "attack.json")
    export_model(
        output_dir / "model",
        trunk=trunk,
        params=outcome.params,
        desired_head=outcome.desired_head,
        tokenizer=work.tokenizer,
        label_names=work.data.label_names(Task.DESIRED),
        settings=settings,
        metrics=metrics,
    )
    result = TrialResult(
        trial_id=trial_id,
        config_hash=content_hash(settings),
        method=settings.train.method,
        seed=settings.seed,
        status=Status.COMPLETE,
        metrics=metrics,
        output_dir=output_dir,
        provenance=provenance | {"weights": params_digest(outcome.params)},
    )
    write_json(output_dir / "result.json", _finite(result))
    shutil.rmtree(output_dir / "checkpoint", ignore_errors=True)
    return result


def run_trial(
    settings: TrialSettings,
    output_dir: Path,
    *,
    trial_id: str = "trial",
    on_progress: Callable[[Progress], None] | None = None,
) -> TrialResult:
    """`iterate_trial` to its end; `on_progress` sees every step on the way."""
    work = iterate_trial(settings, output_dir, trial_id=trial_id)
    return run_through(work, on_progress or (lambda progress: None))


def read_result(output_dir: Path) -> TrialResult | None:
    """The result that lies in a trial's folder, or None when it has not finished."""
    path = output_dir / "result.json"
    if not path.exists():
        return None
    values = read_json(path)
    metrics = {name: float("nan") if value is None else value for name, value in values["metrics"].items()}
    return TrialResult.from_dict({**values, "metrics": metrics}, output_dir)


def _claim_folder(settings: TrialSettings, output_dir: Path) -> TrialResult | None:
    finished = read_result(output_dir)
    if finished is not None and finished.config_hash != content_hash(settings):
        raise UsageError(
            f"{output_dir} holds the result of config {finished.config_hash}, not {content_hash(settings)}; "
            "choose another output folder or remove this one"
        )
    if finished is None:
        write_text(output_dir / "config.yaml", to_yaml(settings))
    return finished


def _finite(result: TrialResult) -> dict[str, object]:
    values = result.to_dict()
    metrics: dict[str, float] = values["metrics"]
    values["metrics"] = {name: value if value == value else None for name, value in metrics.items()}
    return values


def _provenance(work: Workspace, encoder_digest: str) -> dict[str, str]:
    name = torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu"
    return {
        "data": work.data.digest,
        "encoder": encoder_digest,
        "device": name,
        "sdm_ray": version("sdm-ray"),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _write_log(outcome: TrainOutcome, path: Path) -> None:
    names = sorted({name for row in outcome.log for name in row})
    table = pa.table({name: pa.array([row.get(name) for row in outcome.log], pa.float64()) for name in names})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
