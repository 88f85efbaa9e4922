"""Checkpoints are whole or not there, and belong to one run."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sdm_ray.core import files
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.meta.checkpoint import load_checkpoint, save_checkpoint

IDENTITY = {"seed": 1, "train": {"learning_rate": 0.1, "sizes": [1, 2]}}
CPU = torch.device("cpu")


def state() -> dict[str, Any]:
    return {
        "weights": {"a.b": torch.arange(6.0).view(2, 3).T, "empty": torch.zeros(0)},
        "list": [torch.tensor(3), None, {"x": 0.1}],
        "text": "plain",
        "count": 7,
        "bytes": torch.arange(4, dtype=torch.uint8),
    }


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, IDENTITY, state())
    found = load_checkpoint(tmp_path, {**IDENTITY, "train": {"learning_rate": 0.1, "sizes": (1, 2)}}, CPU)
    assert found is not None
    step, loaded = found
    assert step == 5
    assert loaded["list"][1:] == [None, {"x": 0.1}]
    assert (loaded["text"], loaded["count"]) == ("plain", 7)
    for mine, theirs in [
        (loaded["weights"]["a.b"], state()["weights"]["a.b"]),
        (loaded["weights"]["empty"], torch.zeros(0)),
        (loaded["list"][0], torch.tensor(3)),
        (loaded["bytes"], state()["bytes"]),
    ]:
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "missing", IDENTITY, CPU) is None
    assert load_checkpoint(tmp_path, IDENTITY, CPU) is None


def test_only_the_last_is_kept(tmp_path: Path) -> None:
    for step in (5, 10, 10):
        save_checkpoint(tmp_path, step, IDENTITY, state())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000010"]


def test_a_half_written_one_is_ignored_and_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, IDENTITY, state())
    partial = tmp_path / ".step-000000010.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{")
    found = load_checkpoint(tmp_path, IDENTITY, CPU)
    assert found is not None
    assert found[0] == 5
    save_checkpoint(tmp_path, 10, IDENTITY, state())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000010"]


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 5, IDENTITY, state())

    def full(file: int, content: bytes) -> None:
        os.write(file, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(RunError, match=r"checkpoint of step 10 to .*: No space left on device; free space"):
        save_checkpoint(tmp_path, 10, IDENTITY, state())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    assert load_checkpoint(tmp_path, IDENTITY, CPU) is not None


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the checkpoint of step 1"):
        save_checkpoint(tmp_path / "file", 1, IDENTITY, state())


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({**IDENTITY, "seed": 2}, "seed was 1, now it is 2"),
        ({**IDENTITY, "train": {"learning_rate": 0.2, "sizes": [1, 2]}}, "train.learning_rate was 0.1, now it is 0.2"),
        ({**IDENTITY, "data": "x"}, 'data was null, now it is "x"'),
    ],
)
def test_another_run_is_refused_by_name(tmp_path: Path, identity: dict[str, Any], message: str) -> None:
    save_checkpoint(tmp_path, 5, IDENTITY, state())
    with pytest.raises(UsageError, match="belongs to another run") as caught:
        load_checkpoint(tmp_path, identity, CPU)
    assert message in str(caught.value)
    assert "remove the checkpoint" in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "one bit"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_counts(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    if (name, damage) == ("state.json", "one bit"):
        pytest.skip("JSON of which one digit is another is JSON")
    save_checkpoint(tmp_path, 5, IDENTITY, state())
    shutil.copytree(tmp_path / "step-000000005", tmp_path / "kept")
    save_checkpoint(tmp_path, 6, IDENTITY, state())
    (tmp_path / "kept").rename(tmp_path / "step-000000005")
    for step, from_where in ((6, "from the checkpoint before"), (5, "from its beginning")):
        path = tmp_path / f"step-{step:09d}" / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes({"cut": b"{", "gone": b"", "one bit": bytes(content)}[damage])
        if damage == "gone":
            path.unlink()
        found = load_checkpoint(tmp_path, IDENTITY, CPU)
        assert (None if found is None else found[0]) == (5 if step == 6 else None)
        assert (tmp_path / f"step-{step:09d}.damaged-1").is_dir()
        assert f"training goes on {from_where}" in caplog.text
    assert len(caplog.records) == 2
    save_checkpoint(tmp_path, 7, IDENTITY, state())
    assert load_checkpoint(tmp_path, IDENTITY, CPU) is not None
