"""Winners of earlier searches: how they are kept, what a bad file says, and that the next search begins with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.attack.families import Attacker
from sdm_ray.attack.portfolio import add_winners, read_portfolio
from sdm_ray.attack.protocol import AttackReport
from sdm_ray.core.errors import UsageError
from tests.attack.families.test_contract import POOR, RICH
from tests.fakes.attack_world import FakeData, attack, quick


def entry(**changes: Any) -> dict[str, Any]:
    attacker = {"learning_rate": 1e-3, "num_steps": 12, "batch_size": 8}
    return {"family": "fine_tune", "num_examples": 20, "accuracy": 0.9, "model": "a", "attacker": attacker} | changes


def write(path: Path, *entries: dict[str, Any], version: int = 1) -> Path:
    path.write_text(json.dumps({"version": version, "name": "known", "entries": list(entries)}))
    return path


def test_winners_are_kept_once_strongest_first_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "portfolio.json"
    report = attack(FakeData(), quick(families=("fine_tune", "knn")))
    assert add_winners(path, report, "digest") == 4
    assert add_winners(path, report, "digest") == 0, "they are there already"
    found = read_portfolio(path)
    assert found.name == "portfolio"
    accuracies = [one.accuracy for one in found.entries]
    assert accuracies == sorted(accuracies, reverse=True)
    cell = report.cell("fine_tune", 20)
    assert cell is not None
    assert cell.winner is not None
    (attacker,) = found.attackers("fine_tune", 20, RICH)
    assert (attacker.learning_rate, attacker.num_steps) == (cell.winner.learning_rate, cell.winner.num_steps)
    assert add_winners(path, report, "another") == 4
    assert len(read_portfolio(path).attackers("fine_tune", 20, RICH)) == 1, "the same attacker is tried once"


def test_each_search_begins_with_them_within_its_number_of_points_and_the_report_says_so(tmp_path: Path) -> None:
    strong = entry(attacker={"learning_rate": 2e-2, "num_steps": 39, "batch_size": 8})
    weak = entry(accuracy=0.6, attacker={"learning_rate": 1e-9, "num_steps": 10, "batch_size": 8})
    path = write(tmp_path / "p.json", weak, strong, entry(num_examples=50), entry(family="knn"))
    settings = quick(portfolio=str(path), num_search_trials=4, families=("fine_tune",))
    report = attack(FakeData(), settings)
    search = [r for r in report.records if r.phase == "search" and r.num_examples == 20]
    assert [(r.learning_rate, r.num_steps) for r in sorted(search, key=lambda r: r.trial)[:2]] == [
        (2e-2, 39),
        (1e-9, 10),
    ]
    assert sorted(r.trial for r in search) == [0, 1, 2, 3]
    plain = attack(FakeData(), quick(num_search_trials=4, families=("fine_tune",)))
    assert len(report.records) == len(plain.records)
    assert report.portfolio["num_points"] == 2
    assert report.portfolio["seconds"] > 0
    cell = report.cell("fine_tune", 20)
    assert cell is not None
    assert cell.winner is not None
    won = ["fine_tune at n = 20"] if cell.winner.trial < 2 else []
    assert report.portfolio["won"] == won
    assert AttackReport.from_json(report.to_json()).portfolio == report.portfolio
    assert plain.portfolio == {}


def test_one_point_is_the_portfolios(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", entry())
    report = attack(
        FakeData(), quick(portfolio=str(path), num_search_trials=1, families=("fine_tune",), num_examples=(20,))
    )
    assert {record.learning_rate for record in report.records} == {1e-3}
    assert report.portfolio["won"] == ["fine_tune at n = 20"]


def test_what_a_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    deep, own = ({"layer": 2, "probe": "knn", "amount": 3.0, "trains": "probe"}, {"own_head": True, "num_steps": 3})
    path = write(tmp_path / "p.json", entry(attacker=deep), entry(attacker=own), entry(attacker={"depth": 2}))
    found = read_portfolio(path)
    assert len(found.attackers("fine_tune", 20, RICH)) == 3
    assert found.attackers("fine_tune", 20, POOR) == []
    assert all(isinstance(one, Attacker) for one in found.attackers("fine_tune", 20, RICH))


def test_readers_of_names_are_left_out_where_none_is_known_or_the_layer_is_not_there(tmp_path: Path) -> None:
    reader = {"trains": "probe", "probe": "token_probe", "readout": "ridge", "scaling": "standardised", "layer": 0}
    readings: list[dict[str, Any]] = [
        {"reading": "query"}, {"reading": "known"}, {"reading": "interaction", "position": 1},
        {"reading": "interaction", "position": 9},
    ]  # fmt: skip
    entries = [entry(family="token_probe", attacker=reader | reading) for reading in readings]
    found = read_portfolio(write(tmp_path / "p.json", *entries))
    for known, kept in ((True, ["query", "known", "interaction"]), (False, ["query"])):
        facts = RICH._replace(knows_positions=known)
        assert [one.reading for one in found.attackers("token_probe", 20, facts)] == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "attack.portfolio: cannot read .*; name a file that"),
        ('{"version": 7, "entries": []}', "is a portfolio of version 7, expected 1"),
        ('{"version": 1}', "has no list of entries"),
        (json.dumps({"version": 1, "entries": [entry(family="sorcery")]}), "entry 0 is of the family 'sorcery'"),
        (json.dumps({"version": 1, "entries": [entry(attacker={"speed": 1})]}), "has an attacker with 'speed'"),
        (json.dumps({"version": 1, "entries": [entry(attacker={"num_steps": "3"})]}), "has '3' for num_steps"),
        (json.dumps({"version": 1, "entries": [{"family": "knn"}]}), "entry 0 is no winner of a search"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence_before_anything_starts(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    data = FakeData()
    with pytest.raises(UsageError, match=message):
        attack(data, quick(portfolio=str(path)))
    assert data.asked == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 10**12}, "1000000000000 for num_steps, which must lie from 0 to 100000"),
        ({"num_steps": -1}, "-1 for num_steps"),
        ({"batch_size": 0}, "0 for batch_size, which must lie from 1"),
        ({"learning_rate": float("nan")}, "nan for learning_rate"),
        ({"learning_rate": float("inf")}, "inf for learning_rate"),
        ({"rank": 10**9}, "for rank"),
        ({"amounts": [1.0] * 1000}, "for amounts"),
        ({"amounts": [float("nan")]}, "for amounts"),
        ({"optimizer": "mine"}, "'mine' for optimizer; known: adam"),
        ({"schedule": "mine"}, "'mine' for schedule; known: constant"),
        ({"trains": "mine"}, "'mine' for trains; known: full"),
        ({"edit": "os; exit()"}, "for edit"),
        ({"probe": "x" * 10_000}, "for probe"),
    ],
)
def test_somebody_elses_portfolio_is_data_of_bounded_size(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "p.json", entry(attacker={"num_steps": 12} | changes))
    with pytest.raises(UsageError, match=message) as caught:
        read_portfolio(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("changes", [{"num_examples": 10**30}, {"accuracy": float("nan")}, {"family": ["knn"]}])
def test_entries_beyond_all_bounds_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="entry 0"):
        read_portfolio(write(tmp_path / "p.json", entry(**changes)))


def test_a_portfolio_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.json", *[entry()] * 3)
    monkeypatch.setattr("sdm_ray.attack.portfolio.MAX_ENTRIES", 2)
    with pytest.raises(UsageError, match="3 entries, at most 2 are read"):
        read_portfolio(path)
    monkeypatch.setattr("sdm_ray.attack.portfolio.MAX_BYTES", 10)
    with pytest.raises(UsageError, match="bytes, at most 10 are read"):
        read_portfolio(path)
