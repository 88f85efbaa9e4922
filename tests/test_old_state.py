"""State on disk from before the redesign is read, gone on from and not computed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sdm_ray.attack.report import AttackReport
from sdm_ray.config import SweepSettings, TrackingSettings, TrialSettings, content_hash, load_settings, override
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import Status, TrialResult, read_result
from sdm_ray.data import tokenized
from sdm_ray.frontier.tables import read_tables
from sdm_ray.models.export import load_exported
from sdm_ray.models.trunk import params_digest
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.records.best import load_best
from sdm_ray.tracking import open_tracker
from sdm_ray.tracking.client import new_client
from sdm_ray.tracking.outbox import SWEEP_RUN, Delivery, Journal, Record
from sdm_ray.tracking.sink import TRIAL_TAG
from sdm_ray.trial.floors import floor_reports
from sdm_ray.trial.run import iterate_trial, run_trial
from sdm_ray.trial.workspace import open_workspace
from tests.fakes.attack_world import drain
from tests.golden import pins

OLD = Path(__file__).parent / "fixtures" / "before_redesign"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
SAME_MACHINE = pins.machine() == EXPECTED["machine"]
QUICKLY = {"learning_rates": [1e-3], "screen_steps": 2, "max_steps": 2, "every_steps": 2}
"""The reference `scratch`, which no old version had, trains for two steps: no number compared here depends on it."""
MARK = 123.25
"""A loss that no training has; put into a checkpoint's log, it shows in the log of whoever went on from it."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the encoder, the data and the caches, as the working directory."""
    for name in ("world", "cache"):
        shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sweep(home: Path) -> Path:
    """A copy of the interrupted sweep."""
    return shutil.copytree(OLD / "sweep", home / "runs" / "old")


def settings_in(folder: Path, home: Path) -> TrialSettings:
    """The settings of a trial's folder; its caches by an absolute path, which no other test has."""
    settings = load_settings(TrialSettings, folder / "config.yaml")
    quickly = {f"scratch.{name}": value for name, value in QUICKLY.items()}
    return override(settings, {"runtime.cache_dir": str(home / "cache"), **quickly})


def marked(checkpoint: Path) -> int:
    """Put `MARK` into the first row of a checkpoint's log; gives the step of the checkpoint."""
    (path,) = checkpoint.glob("step-*/state.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    document["state"]["log"]["rows"][0]["train/desired_loss"] = MARK
    path.write_text(json.dumps(document), encoding="utf-8")
    return int(document["step"])


def first_loss(trial: Path) -> float:
    """The first loss in the log of a trial that has ended."""
    return float(pq.read_table(trial / "train.parquet")["train/desired_loss"][0].as_py())


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file that is no lock."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock")]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def assert_close(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    """Equal numbers on the machine that made the state, close ones elsewhere."""
    chosen = {name: found[name] for name in expected}
    assert chosen == (expected if SAME_MACHINE else pytest.approx(expected, abs=tolerance, rel=tolerance, nan_ok=True))


def test_a_trial_goes_on_from_its_checkpoint_and_ends_as_an_undisturbed_one(home: Path) -> None:
    """With a pool of persistent adversaries, retention, validation and a schedule in the checkpoint."""
    folder = shutil.copytree(OLD / "trial", home / "trial")
    assert marked(folder / "checkpoint") == 12
    settings, expected, steps = settings_in(folder, home), EXPECTED["trial"], list[int]()
    assert content_hash(settings) == expected["config_hash"]
    result = run_trial(settings, folder, on_progress=lambda seen: steps.append(seen.done))
    assert steps[0] > 12
    assert first_loss(folder) == MARK
    stable = ("data", "data_source", "attack", "encoder", "encoder_name")
    assert {name: result.provenance[name] for name in stable} == {name: expected["provenance"][name] for name in stable}
    if SAME_MACHINE:
        assert result.provenance["weights"] == expected["provenance"]["weights"]
    exported = load_exported(folder / "model").params
    norms = {name: value.double().norm().item() for name, value in exported.items()}
    assert_close(norms, expected["norms"], 1e-3)
    pooled = {"harmful/worst_accuracy/low", "harmful/worst_accuracy/high"}  # of a mean over n: computed otherwise then
    assert pooled <= result.metrics.keys()
    now, before = ({k: v for k, v in m.items() if k not in pooled} for m in (result.metrics, expected["metrics"]))
    assert_close(now, before, 0.2)


def shortened(trial: TrialSettings, output_dir: Path, **options: Any) -> Generator[Progress, None, TrialResult]:
    """As `iterate_trial`, with fewer steps where nothing of old is gone on with."""
    is_new = not (output_dir / "checkpoint").exists()
    steps = {"train.num_outer_steps": 4} if is_new else {}
    return (yield from iterate_trial(override(trial, steps), output_dir, **options))


@pytest.mark.usefixtures("in_process")
def test_a_sweep_is_resumed_and_nothing_that_ended_runs_again(sweep: Path) -> None:
    ended = {name: files_of(sweep / "trials" / name) for name in ("tuned", "t0000")}
    ledger = (sweep / "trials.jsonl").read_text(encoding="utf-8")
    assert marked(sweep / "trials" / "t0001" / "checkpoint") > 0
    view = SilentView()
    text = (sweep / "sweep.yaml").read_text(encoding="utf-8")
    (sweep / "sweep.yaml").write_text(
        text.replace("trial:\n", f"trial:\n  scratch: {json.dumps(QUICKLY)}\n", 1), encoding="utf-8"
    )
    outcome = run_sweep(
        load_settings(SweepSettings, sweep / "sweep.yaml"), resume=True, view=view,
        trial_function="tests.test_old_state:shortened",
    )  # fmt: skip
    assert not outcome.interrupted
    assert [result.trial_id for result in outcome.results] == ["tuned", "t0000", "t0001", "t0002"]
    assert [result.trial_id for result in view.ended] == ["t0001", "t0002"]
    assert not outcome.failures
    assert {name: files_of(sweep / "trials" / name) for name in ended} == ended
    assert (sweep / "trials.jsonl").read_text(encoding="utf-8").startswith(ledger)
    assert first_loss(sweep / "trials" / "t0001") == MARK
    assert first_loss(sweep / "trials" / "t0002") != MARK
    for result in outcome.results:
        if result.trial_id != "t0002":
            check_result(result)
        # Optuna is told that t0001 is feasible, as it was not before audits were compared with their references'.
        assert result.trial_id != "t0002" or (result.status is Status.COMPLETE and result.params)
    assert [point.trial_id for point in read_tables(sweep)] == [point.trial_id for point in outcome.points]


def check_result(result: TrialResult) -> None:
    """A trial of the resumed sweep is what the old version made of it."""
    expected = EXPECTED["sweep"][result.trial_id]
    assert_close(result.metrics, expected["metrics"], 0.2)
    assert result.params == expected["params"]
    assert result.config_hash == expected["config_hash"]
    if SAME_MACHINE:
        assert result.provenance["weights"] == expected["weights"]
        # What a reference fails too kept a trial off then, and says nothing now.
        assert str(result.status) == expected["status"] or (result.uninformative_checks and not result.failed_checks)


def test_a_finished_trial_is_read(home: Path, sweep: Path) -> None:
    folder, before = sweep / "trials" / "t0000", files_of(sweep)
    result = read_result(folder)
    assert result is not None
    assert result.config_hash == content_hash(load_settings(TrialSettings, folder / "config.yaml"))
    exported = load_exported(folder / "model")
    assert params_digest(exported.params) == result.provenance["weights"]
    assert exported.meta is not None
    assert tuple(exported.meta.label_names) == ("nurse", "pilot", "tailor")
    report = AttackReport.read_json(folder / "attack.json")
    assert report.worst_accuracy == result.metrics[Metric.HARMFUL_WORST_ACCURACY]
    assert run_trial(settings_in(folder, home), folder) == result
    assert files_of(sweep) == before


def test_tables_and_the_best_trial_of_a_sweep_are_read(sweep: Path) -> None:
    points = read_tables(sweep)
    assert [(point.trial_id, point.is_reference) for point in points] == [("tuned", True), ("t0000", False)]
    best = load_best(sweep)
    assert best.origin is not None
    assert (best.origin.sweep, best.origin.trial_id) == ("old", "t0000")
    assert content_hash(best) == EXPECTED["sweep"]["t0000"]["config_hash"]
    assert best.origin.metrics[Metric.DESIRED_ACCURACY] == points[1].desired


def test_cached_tokens_and_floors_are_found_and_not_built_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights may differ in their last bits on another machine, and then so does their floor's key. Positions of
    names, which the old version did not look for, are put into the entry of the tokens, and nothing else changes."""
    settings = settings_in(OLD / "trial", home)
    before = files_of(home / "cache" / "floors")
    (sidecar,) = (home / "cache" / "tokenized").glob("*.json")
    tokens = json.loads(sidecar.read_text(encoding="utf-8"))
    monkeypatch.setattr(tokenized, "tokenize", lambda *arguments: pytest.fail("the texts were tokenised again"))
    encoders: Any = {"pretrained": settings.encoder} | ({"random": settings.encoder} if SAME_MACHINE else {})
    work = open_workspace(settings)
    built: list[Any] = []
    reports = drain(told(floor_reports(work, encoders, settings.attack, settings.seed), built.append))
    assert reports.keys() == encoders.keys()
    assert built == []
    assert files_of(home / "cache" / "floors") == before
    now = json.loads(sidecar.read_text(encoding="utf-8"))
    assert (now["digest"], now["names_version"]) == (tokens["digest"], tokenized.NAMES_VERSION)


def told(work: Any, tell: Callable[[Any], None]) -> Any:
    """A generator, with every yield told."""
    try:
        while True:
            seen = next(work)
            tell(seen)
            yield seen
    except StopIteration as stop:
        return stop.value


class Taking:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[Record] = []

    def apply(self, records: list[Record]) -> None:
        self.got += records


def test_an_old_journal_goes_on_after_what_was_delivered(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "tracking", tmp_path / "tracking")
    calls = [("log", 12), ("finish", 12), ("start", None), ("log", 4), ("finish_sweep", None)]
    for expected in (calls, []):
        sink, journal = Taking(), Journal(folder)
        assert journal.count_pending() == len(expected)
        assert Delivery(journal, sink).close(10, 10)
        assert [(record["call"], record.get("step")) for record in sink.got] == expected
    assert int((folder / "delivered").read_text()) == (folder / "journal.jsonl").stat().st_size


def test_old_undelivered_records_reach_mlflow_once(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "old"
    shutil.copytree(OLD / "tracking", sweep_dir / "tracking", ignore=shutil.ignore_patterns("delivered"))
    (sweep_dir / "trials" / "t0000").mkdir(parents=True)
    (sweep_dir / "trials" / "t0000" / "config.yaml").write_text("seed: 0\n")
    path = sweep_dir / "tracking" / "journal.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("@FOLDER@", str(sweep_dir)), encoding="utf-8")
    for _ in range(2):
        tracker = open_tracker(TrackingSettings(), sweep_dir)
        tracker.start_sweep("old", {}, {})
        tracker.finish_sweep("complete")
    client = new_client(f"sqlite:///{sweep_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("sdm-ray")
    found = client.search_runs([experiment.experiment_id])
    runs = {run.data.tags[TRIAL_TAG]: run for run in found}
    assert sorted(runs) == [SWEEP_RUN, "t0000", "t0001"]
    assert len(found) == 3
    assert [runs[name].info.status for name in sorted(runs)] == ["FINISHED", "FINISHED", "KILLED"]
    child = runs["t0000"]
    assert child.data.tags["mlflow.parentRunId"] == runs[SWEEP_RUN].info.run_id
    assert child.data.tags["sdm_ray.sweep_id"] == (OLD / "tracking" / "sweep_id").read_text().strip()
    assert child.data.params == {"train.learning_rate": "0.001"}
    history = client.get_metric_history(child.info.run_id, "train/desired_loss")
    assert [(metric.step, metric.value) for metric in history] == [(4, 0.25), (8, 0.125), (12, 1 / 12)]
    assert child.data.metrics[Metric.DESIRED_ACCURACY] == 0.9
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["config.yaml"]
    assert [given.dataset.name for given in child.inputs.dataset_inputs] == ["rows.parquet", "encoder"]
    assert runs[SWEEP_RUN].data.params["search.num_trials"] == "3"


def test_old_state_names_no_module() -> None:
    """Modules may move: what is on disk holds neither pickles nor their names."""
    files = [path for path in OLD.rglob("*") if path.is_file()]
    allowed = {".json", ".jsonl", ".yaml", ".md", ".safetensors", ".parquet", ".arrow", ".db", ""}
    assert {path.suffix for path in files} <= allowed
    assert not [path for path in files if b"sdm_ray." in path.read_bytes().replace(b"sdm_ray.sweep_id", b"")]
