"""Results and locks that somebody has damaged end in a sentence with the file, the value and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.errors import RunError
from sdm_ray.core.files import read_json
from sdm_ray.core.lock import FolderLock, holder_of
from sdm_ray.core.result import Status, TrialResult, read_result, write_result


def stored(folder: Path, **changes: Any) -> Path:
    """A folder with a result, some of its values changed behind its back."""
    result = TrialResult(
        trial_id="t0000", config_hash="0" * 12, method="mlac", seed=0, status=Status.COMPLETE,
        metrics={"desired/accuracy": 0.5, "harmful/worst/accuracy": float("nan")}, output_dir=folder,
    )  # fmt: skip
    write_result(result)
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_what_is_whole_is_read_again(tmp_path: Path) -> None:
    result = read_result(stored(tmp_path))
    assert result is not None
    assert result.metrics["desired/accuracy"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"desired/accuracy": "high"}}, r"metrics is .*'high'.*, and must be a mapping to numbers"),
        ({"metrics": [0.5]}, "no attribute"),
        ({"metrics": None}, "no attribute"),
        ({"seed": "zero"}, "seed is 'zero', and must be a whole number"),
        ({"seed": True}, "seed is True, and must be a whole number"),
        ({"trial_id": 5}, "trial_id is 5, and must be text"),
        ({"params": [1]}, r"params is \[1\], and must be a mapping"),
        ({"provenance": {"data": 1}}, "provenance is .* and must be a mapping to text"),
        ({"status": "lost"}, "'lost' is not a valid Status"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_values_of_another_kind_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=rf"result\.json is damaged \(.*{message}.*delete it"):
        read_result(stored(tmp_path, **changes))


@pytest.mark.parametrize("text", ["null", "[]", "3", "{}", '"text"'])
def test_what_is_no_result_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RunError, match=r"result\.json is damaged \(.+\)"):
        read_result(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "\udcff"])
def test_json_that_cannot_be_held_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(RunError, match=r"cannot read .*file\.json: ."):
        read_json(path)


def test_a_lock_that_is_a_folder_is_said(tmp_path: Path) -> None:
    """By whoever asks for the holder, and by whoever takes it."""
    lock = tmp_path / "sweep.lock"
    assert holder_of(lock) is None
    lock.mkdir()
    with pytest.raises(RunError, match=r"cannot read the lock .*sweep\.lock: Is a directory; remove it"):
        holder_of(lock)
    with pytest.raises(RunError, match=r"cannot write .*sweep\.lock: Is a directory; remove it"):
        FolderLock(lock).acquire()
