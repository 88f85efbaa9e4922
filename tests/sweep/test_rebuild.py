"""What is damaged and can be rebuilt is rebuilt from the ledger, and said once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest

from sdm_ray.cli.app import main
from sdm_ray.core.result import TrialResult
from sdm_ray.sweep import SilentView, SweepOutcome, run_sweep
from sdm_ray.sweep import runner as runner_module
from sdm_ray.sweep.opening import study_damage
from sdm_ray.sweep.state.ledger import read_record
from sdm_ray.tracking import NoTracker
from tests.fakes import sweep as sweep_fakes


def run(
    folder: Path, num_trials: int, *, view: SilentView | None = None, resume: bool = False, function: str = "smooth"
) -> SweepOutcome:
    settings = sweep_fakes.settings(folder, references="[tuned]", search__num_trials=num_trials)
    return run_sweep(settings, resume=resume, trial_function=f"tests.fakes.sweep:{function}", view=view or SilentView())


def told(folder: Path) -> list[tuple[str, dict[str, float], list[float]]]:
    storage = f"sqlite:///{folder}/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(storage=storage, study_name=name).trials
    return [(trial.state.name, trial.params, trial.values) for trial in trials]


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def cut_on_a_page(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: 4096 * 8])


def garbage(file: Path) -> None:
    file.write_bytes(b"\xff\x00 no database" * 1000)


def emptied(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DELETE FROM trials")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("damage", [empty, cut, cut_on_a_page, garbage, emptied])
def test_a_damaged_study_is_moved_aside_and_rebuilt_from_the_ledger(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    outcome = run(tmp_path, 2)
    before = told(outcome.folder)
    damage(outcome.folder / "optuna.db")
    kept = (outcome.folder / "optuna.db").read_bytes()
    view = SilentView()
    outcome = run(tmp_path, 3, view=view, resume=True)
    said = [message for message in view.messages if "optuna.db is damaged" in message]
    assert len(said) == 1
    assert "optuna.db.damaged-1 and is rebuilt from the ledger" in said[0]
    assert (outcome.folder / "optuna.db.damaged-1").read_bytes() == kept
    after = told(outcome.folder)
    assert after[:2] == before
    assert len(after) == 3
    assert all(len(sweep_fakes.events(path, "finished")) == 1 for path in (outcome.folder / "trials").iterdir())


def test_a_locked_study_is_not_taken_for_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "optuna.db"
    optuna.create_study(storage=f"sqlite:///{file}", study_name="mine")
    lock = sqlite3.connect(file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert study_damage(file, "mine", 5) is None
    finally:
        lock.close()
    assert study_damage(file, "mine", 0) is None
    assert study_damage(file, "mine", 5) == "it holds 0 of 5 trials"
    assert study_damage(file, "other", 0) == "it does not hold the study"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("text", ["", "{", "null", '{"metrics": {"a": "text"}}'])
def test_a_damaged_result_of_an_ended_trial_is_written_anew_from_the_ledger(tmp_path: Path, text: str) -> None:
    folder = run(tmp_path, 1).folder
    file = folder / "trials" / "t0000" / "result.json"
    before = json.loads(file.read_text())
    file.write_text(text)
    view = SilentView()
    run(tmp_path, 1, view=view, resume=True)
    after = json.loads(file.read_text())
    assert after["metrics"] == before["metrics"]
    assert "result.json was damaged and is written anew from the ledger: t0000" in view.messages
    assert (file.parent / "result.json.damaged-1").read_text() == text


@pytest.mark.usefixtures("in_process")
def test_a_damaged_result_of_an_unfinished_trial_is_run_again_and_said_once(tmp_path: Path) -> None:
    folder = run(tmp_path, 1, function="forgetful").folder
    ledger = folder / "trials.jsonl"
    lines = [line for line in ledger.read_text().splitlines() if '"result"' not in line or "t0000" not in line]
    ledger.write_text("".join(f"{line}\n" for line in lines))
    (folder / "trials" / "t0000" / "result.json").write_text("{")
    view = SilentView()
    run(tmp_path, 1, view=view, resume=True, function="forgetful")
    assert read_record(folder).entries["t0000"].result is not None
    assert sum(message.startswith("trial t0000: the result was damaged") for message in view.messages) == 1
    assert len(sweep_fakes.events(folder / "trials" / "t0000", "started")) == 2


def damage_lines(folder: Path, *marks: str) -> list[str]:
    """Damage the lines of a ledger in which all of the words of a mark stand; gives the lines as they were."""
    lines = (folder / "trials.jsonl").read_text().splitlines()
    hit = [any(all(word in line for word in mark.split()) for mark in marks) for line in lines]
    assert any(hit)
    text = "".join(f"{'#' * 10 if is_hit else line}\n" for line, is_hit in zip(lines, hit, strict=True))
    (folder / "trials.jsonl").write_text(text)
    return lines


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("mark", ['"result" t0000', '"result" tuned', '"trial" tuned', '"study"'])
def test_a_damaged_line_of_the_ledger_is_made_up_for(tmp_path: Path, mark: str) -> None:
    folder = run(tmp_path, 2).folder
    before = told(folder)
    damage_lines(folder, mark)
    view = SilentView()
    outcome = run(tmp_path, 3, view=view, resume=True)
    (said,) = [message for message in view.messages if "trials.jsonl is damaged" in message]
    assert "it lies in trials.jsonl.damaged-1" in said
    assert [result.trial_id for result in outcome.results] == ["tuned", "t0000", "t0001", "t0002"]
    assert all(len(sweep_fakes.events(path, "finished")) == 1 for path in (folder / "trials").iterdir())
    storage = f"sqlite:///{folder}/optuna.db"
    name = read_record(folder).study_name
    assert name is not None
    after = optuna.load_study(storage=storage, study_name=name).trials
    assert [(trial.state.name, trial.params, trial.values) for trial in after][:2] == before
    assert len(after) == 3


@pytest.mark.usefixtures("in_process")
def test_what_is_readable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any) -> None:
    """`status`, `frontier` and `best` leave out what is damaged, say so, and end well."""
    folder = run(tmp_path, 3).folder
    damage_lines(folder, '"result" t0001')
    (folder / "frontier.parquet").write_bytes(b"cut")
    (folder / "trials" / "t0000" / "result.json").write_text("{")
    (folder / "trials" / "t0000" / "config.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0

    command("status", str(folder), "--json")
    status = json.loads(capsys.readouterr().out)
    (line,) = status["damaged_lines"]
    assert status["unfinished"] == ["t0001"]
    command("status", str(folder))
    assert f"warning: trials.jsonl, {line}, is damaged and left out" in capsys.readouterr().out
    command("frontier", str(folder), "--json")
    points = json.loads(capsys.readouterr().out)["points"]
    assert sorted(point["trial_id"] for point in points) == ["t0000", "t0002", "tuned"]
    command("best", str(folder), "--trial", "t0000", "--out", "best.yaml")
    assert Path("best.yaml").is_file()
    assert f"trials.jsonl, {line}, is damaged and left out" in caplog.text
    assert "the points are from" in caplog.text


class Forgetful(NoTracker):
    """Has lost its record of all trials but some."""

    def __init__(self, known: set[str]) -> None:
        self.known, self.calls = known, list[tuple[str, str]]()

    def is_recorded(self, trial_id: str) -> bool:
        return trial_id in self.known

    def start_trial(self, trial_id: str, *arguments: Any, **options: Any) -> None:
        self.calls.append(("start", trial_id))

    def finish_trial(self, result: TrialResult) -> None:
        self.calls.append(("finish", result.trial_id))


@pytest.mark.usefixtures("in_process")
def test_a_tracker_that_lost_its_record_is_told_of_every_ended_trial_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, 2)
    tracker, view = Forgetful({"tuned", "t0001"}), SilentView()
    monkeypatch.setattr(runner_module, "open_tracker", lambda settings, folder, **options: tracker)
    run(tmp_path, 2, view=view, resume=True)
    assert tracker.calls == [("start", "t0000"), ("finish", "t0000")]
    assert "tracking has no record of trials that have ended (1); they are recorded again" in view.messages
