"""Lines of a ledger that somebody has damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.errors import RunError
from sdm_ray.sweep.state.ledger import FILE, read_record

TRIAL = {"event": "trial", "trial_id": "t0000", "role": "search", "method": "mlac", "number": 0, "params": {}}
RESULT = {
    "event": "result", "trial_id": "t0000", "config_hash": "", "method": "mlac", "seed": 0, "status": "complete",
    "metrics": {"desired/accuracy": None},
}  # fmt: skip
RUNG = {"event": "rung", "trial_id": "t0000", "step": 1, "desired": 0.5, "harmful": 0.5}


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
    with pytest.raises(RunError, match=rf"trials\.jsonl, line 2, is damaged \(.*{message}.*delete all lines"):
        read_record(write(tmp_path, TRIAL, line, RUNG))
