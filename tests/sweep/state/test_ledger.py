"""Lines of a ledger that somebody has damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.errors import RunError
from sdm_ray.sweep.state.ledger import FILE, Ledger, read_record

TRIAL = {"event": "trial", "trial_id": "t0000", "role": "search", "method": "mlac", "number": 0, "params": {}}
RESULT = {
    "event": "result", "trial_id": "t0000", "config_hash": "", "method": "mlac", "seed": 0, "status": "complete",
    "metrics": {"desired/accuracy": None},
}  # fmt: skip
RUNG = {"event": "rung", "trial_id": "t0000", "step": 1, "desired": 0.5, "harmful": 0.5}


REFERENCE = TRIAL | {"trial_id": "tuned", "role": "reference", "method": "tuned", "number": None}


def write(folder: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / FILE).write_text("".join(f"{text}\n" for text in texts))
    return folder


def test_whole_lines_are_read(tmp_path: Path) -> None:
    record = read_record(write(tmp_path, TRIAL, RUNG, RESULT))
    assert record.rungs == {1: {"t0000": (0.5, 0.5)}}
    assert record.entries["t0000"].result is not None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("null", "None stands where a mapping belongs"),
        ("[]", r"\[\] stands where a mapping belongs"),
        ("[" * 50_000, "recursion"),
        ("9" * 5000, "digits"),
        ("{}", "'event' is missing"),
        (TRIAL | {"trial_id": 7}, "trial_id is 7, and must be text"),
        (TRIAL | {"trial_id": ["t"]}, r"trial_id is \['t'\], and must be text"),
        (TRIAL | {"params": None}, "params is None, and must be a mapping"),
        (RUNG | {"step": "first"}, "step is 'first', and must be a whole number"),
        (RUNG | {"desired": "much"}, "desired is 'much', and must be a number"),
        (RESULT | {"metrics": {"desired/accuracy": "high"}}, "metrics is .*, and must be a mapping to numbers"),
        (RESULT | {"metrics": [1]}, "has no attribute"),
        (RESULT | {"trial_id": "t0009"}, "'t0009' is missing"),
        (RESULT | {"seconds": "long"}, "seconds is 'long', and must be a number"),
    ],
)
def test_a_damaged_line_is_named_with_what_is_wrong(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(RunError, match=rf"trials\.jsonl, line 2 \(.*{message}.*\), is damaged; .*--resume"):
        read_record(write(tmp_path, TRIAL, line, RUNG))


def test_damaged_lines_are_left_out_where_a_sweep_is_looked_at(tmp_path: Path) -> None:
    record = read_record(write(tmp_path, TRIAL, RESULT, "{", REFERENCE, "null", RUNG), around=True)
    assert list(record.entries) == ["t0000", "tuned"]
    assert record.entries["t0000"].result is not None
    assert [line.partition(" (")[0] for line in record.damaged] == ["line 3", "line 5"]


@pytest.mark.parametrize("damage", ["{", RESULT | {"metrics": [1]}])
def test_a_trial_whose_end_is_damaged_has_none_once_the_ledger_is_opened(tmp_path: Path, damage: Any) -> None:
    write(tmp_path, TRIAL, damage, REFERENCE)
    before = (tmp_path / FILE).read_bytes()
    ledger = Ledger(tmp_path)
    ledger.name_study("mine", {})
    ledger.close()
    assert ledger.mended is not None
    assert ledger.mended.startswith(f"{FILE} is damaged in line 2")
    assert (tmp_path / f"{FILE}.damaged-1").read_bytes() == before
    record = read_record(tmp_path)
    assert list(record.entries) == ["t0000", "tuned"]
    assert record.entries["t0000"].result is None
    assert record.study_name == "mine"
    assert Ledger(tmp_path).mended is None


@pytest.mark.parametrize(
    ("lines", "point"),
    [
        (("{", RESULT), "t0000"),
        (("{", RUNG, REFERENCE), "t0000"),
        (("{", TRIAL | {"trial_id": "t0001"}, REFERENCE), "t0000"),
        ((TRIAL, "{", TRIAL | {"trial_id": "t0001-s1", "point": "t0001", "seed_index": 1}, "{", RUNG), None),
    ],
)
def test_a_searched_trial_whose_start_is_damaged_is_refused(
    tmp_path: Path, lines: tuple[Any, ...], point: str | None
) -> None:
    """Nothing else says what it tried, and its id would be given to another point."""
    write(tmp_path, *lines)
    before = (tmp_path / FILE).read_bytes()
    if point is None:
        assert Ledger(tmp_path).mended is not None
        return
    with pytest.raises(RunError, match=rf"line 1 \(.*is damaged, and nothing else says what {point} is to try.*--fork"):
        Ledger(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_reference_whose_start_is_damaged_begins_again(tmp_path: Path) -> None:
    ledger = Ledger(write(tmp_path, "{", RESULT | {"trial_id": "tuned"}, TRIAL))
    assert list(ledger.record.entries) == ["t0000"]
    assert ledger.mended is not None
    assert "line 1 (" in ledger.mended
    assert "and 1 more" in ledger.mended


def test_ends_from_outside_are_counted(tmp_path: Path) -> None:
    ledger = Ledger(write(tmp_path, TRIAL))
    ledger.give_up("t0000", "killed")
    ledger.give_up("t0000", "its node was lost")
    ledger.close()
    entry = read_record(tmp_path).entries["t0000"]
    assert (entry.num_killed, entry.killed, entry.result) == (2, "its node was lost", None)
