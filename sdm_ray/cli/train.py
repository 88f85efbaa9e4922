"""`sdm-ray train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from sdm_ray.cli.progress import IMPORTING, READING, console, error_console, follow, say
from sdm_ray.cli.tables import attack_table
from sdm_ray.cli.tracking import tracked
from sdm_ray.cli.verdicts import point_lines
from sdm_ray.config import TrialSettings, content_hash
from sdm_ray.core.errors import RunError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.core.verdict import few_reruns
from sdm_ray.figures.training import FIGURE
from sdm_ray.trial.training_log import LOG

if TYPE_CHECKING:
    from sdm_ray.trial.workspace import Initialisation

INITIALISATIONS: tuple[Initialisation, ...] = ("random", "pretrained")
FILES = {"log": LOG, "plot": FIGURE, "model": "model", "attacks": "attack.parquet"}
"""Files that a trial leaves behind, by their names in the output."""


def run(settings: TrialSettings, config: Path, out: Path | None, tracking_uri: str | None = None) -> None:
    """Train, attack and print the results; a config from a tracked sweep is tracked next to its trial."""
    from sdm_ray.sweep.cluster.choice import check_out

    check_out(out)
    say(IMPORTING)
    from sdm_ray.attack.protocol import AttackReport
    from sdm_ray.models.pooling import choose_pooling
    from sdm_ray.sweep.search.samplers import attack_samplers
    from sdm_ray.trial.context import TrialContext
    from sdm_ray.trial.floors import floor_report
    from sdm_ray.trial.run import iterate_trial
    from sdm_ray.trial.workspace import open_workspace

    context = TrialContext(samplers=attack_samplers())
    encoder, note = choose_pooling(settings.encoder)
    settings = settings.model_copy(update={"encoder": encoder})
    if note is not None:
        console.print(escape(note), soft_wrap=True)
    folder = out or Path("runs") / f"{settings.name}-{content_hash(settings)}"
    try:
        with tracked(settings, folder, tracking_uri) as log:
            say(READING)
            result = follow(log(iterate_trial(settings, folder, trial_id=settings.name, context=context)))
        if result.status is Status.INFEASIBLE:
            raise RunError(f"{result.error}; it is not attacked: lower the bound, or what costs the desired task")
        work = open_workspace(settings, context)
        floors: dict[str, AttackReport] = {
            name: follow(floor_report(work, settings.encoder, settings.attack, name, settings.seed), name)
            for name in INITIALISATIONS
        }
    except KeyboardInterrupt:
        error_console.print(f"stopped; the same command resumes from {folder / 'checkpoint'}", markup=False)
        raise typer.Exit(130) from None
    except RunError:
        _say_where(folder)
        raise
    released = AttackReport.read_json(folder / "attack.json")
    console.print(attack_table({settings.train.method: released, **floors}))
    metrics = result.metrics
    console.print(
        f"desired accuracy {metrics[Metric.DESIRED_ACCURACY]:.3f}, "
        f"worst-case harmful accuracy {metrics[Metric.HARMFUL_WORST_ACCURACY]:.3f} "
        f"(base rate {metrics[Metric.HARMFUL_BASE_RATE]:.3f}), "
        f"{metrics[Metric.COST_TRAIN_SECONDS]:.0f} s of training, {metrics[Metric.COST_ATTACK_SECONDS]:.0f} s of attack"
    )
    few = few_reruns(settings.attack.num_rerun_seeds, settings.attack.num_searches)
    verdict = point_lines(metrics, result.failed_checks, figures={})
    for line in (*verdict, *audit_lines(result), *([] if few is None else [f"warning: {few}"])):
        console.print(escape(line), soft_wrap=True)
    _say_where(folder)
    if settings.data.source != "regression":  # those networks are released as bare weights
        console.print(f"next    sdm-ray attack {escape(shlex.quote(str(folder / 'model')))}", soft_wrap=True)


def audit_lines(result: TrialResult) -> list[str]:
    """Failed and inconclusive checks of the audit, with their observations."""
    kinds = {"FAILED": result.failed_checks, "uninformative": result.uninformative_checks}
    return [
        f"audit, {name.replace('_', ' ')}: {word}: {said}"
        for word, checks in kinds.items()
        for name, said in checks.items()
    ]


def _say_where(folder: Path) -> None:
    """Print the files in a trial's folder."""
    for name, file in FILES.items():
        if (folder / file).exists():
            console.print(f"{name:7} {escape(str(folder / file))}", soft_wrap=True)
