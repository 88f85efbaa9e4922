"""What the commands about a sweep say before it runs and after it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdm_ray.cli import sweep as sweep_module
from sdm_ray.cli.progress import IMPORTING, READING
from sdm_ray.cli.sweep import run_checked, shortfalls
from sdm_ray.core.errors import UsageError
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep import SweepOutcome
from sdm_ray.sweep.records.folder import begun_settings, claimed_folder
from sdm_ray.sweep.view.status import list_sweeps
from tests.fakes import sweep as sweep_fakes
from tests.fakes.results import trial_result


def result(trial_id: str, status: Status, error: str | None = None) -> TrialResult:
    return trial_result(trial_id, status=status, error=error)


OUTCOME = SweepOutcome(
    folder=Path("runs/s"),
    results=[
        result("tuned", Status.COMPLETE),
        result("t0000-s1", Status.INFEASIBLE, "seed 1 is below"),
        result("t0001", Status.INFEASIBLE, "training stopped at step 20"),
        result("t0002", Status.FAILED, "its process died"),
        result("t0003", Status.STOPPED, "dominated at its rung"),
        result("t0000-final", Status.FAILED, "no model"),
    ],
    points=[],
    infeasible={"t0000": "desired accuracy 0.8 is below 0.9"},
)


def test_every_trial_off_the_frontier_has_its_reason_and_each_point_one() -> None:
    assert shortfalls(OUTCOME) == [
        "infeasible: t0000: desired accuracy 0.8 is below 0.9",
        "infeasible: t0001: training stopped at step 20",
        "stopped: t0003: dominated at its rung",
        "failed: t0002: its process died",
        "failed: t0000-final: no model",
    ]


def test_a_long_list_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "MAX_LISTED", 1)
    lines = shortfalls(OUTCOME)
    assert lines[:2] == [
        "infeasible: t0000: desired accuracy 0.8 is below 0.9",
        "infeasible: 1 more, with their reasons in runs/s/trials.jsonl",
    ]


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379"])
def test_what_takes_long_is_said_before_it_and_reasons_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    """On a cluster the driver reads no data."""
    said: list[str] = []
    monkeypatch.setattr("sdm_ray.sweep.cluster.choice.check_cluster", lambda _: None)
    monkeypatch.setattr("sdm_ray.trial.workspace.check_inputs", lambda *_: said.append(capsys.readouterr().err))
    monkeypatch.setattr("sdm_ray.sweep.runner.run_sweep", lambda *_, **__: OUTCOME)
    run_checked(sweep_fakes.settings(tmp_path, resources__ray_address=address), resume=False)
    first = [IMPORTING, READING] if address == "local" else [IMPORTING]
    assert [*"".join(said).splitlines(), *capsys.readouterr().err.splitlines()] == [*first, *shortfalls(OUTCOME)]


def test_a_sweep_is_told_the_data_and_encoder_of_now(
    tmp_path: Path, data_file: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdm_ray.config import SweepSettings, parse_settings

    trial = {"data": {"source": str(data_file)}, "encoder": {"name": str(encoder_folder)}}
    trial |= {"attack": {"num_examples": [4]}, "runtime": {"cache_dir": str(tmp_path / "cache")}}
    document = {"output_dir": str(tmp_path), "trial": trial, "search": {"num_trials": 0}, "references": ["tuned"]}
    given: dict[str, str] = {}

    def run_sweep(settings: SweepSettings, *, resume: bool, inputs: dict[str, str], **options: object) -> None:
        given.update(inputs)
        raise KeyboardInterrupt

    monkeypatch.setattr("sdm_ray.sweep.runner.run_sweep", run_sweep)
    with pytest.raises(KeyboardInterrupt):
        run_checked(parse_settings(SweepSettings, document), resume=True)
    assert given.keys() == {"data", "encoder"}
    assert all(len(digest) == 64 for digest in given.values())


def test_an_emptied_sweep_file_is_said_and_is_no_changed_sweep(tmp_path: Path) -> None:
    """A full disk leaves an empty file, of which resuming said that the sweep had changed in all that it sets."""
    settings = sweep_fakes.settings(tmp_path)
    folder = tmp_path / settings.name
    folder.mkdir()
    (folder / "sweep.yaml").write_text("# nothing\n")
    with pytest.raises(UsageError, match=r"sweep\.yaml is empty.*restore it"), claimed_folder(settings, resume=True):
        pass
    with pytest.raises(UsageError, match=r"sweep\.yaml is empty"):
        begun_settings(folder)
    assert "is empty" in list_sweeps(tmp_path)[0].problem
