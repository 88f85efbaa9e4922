"""What is said of a process that died, from Tune's account of it and from its own log."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdm_ray.sweep.tune.deaths import death_reason

SETUP = """Failure # 1 (occurred at 2026-01-01_00-00-00)
Failed to set up the runtime environment:
Traceback (most recent call last):
  File "packaging.py", line 957, in download_and_unpack_package
    raise IOError(
OSError: Failed to download runtime_env file package gcs://_ray_pkg_01.zip from the GCS.

"""
LOST = """Failure # {number} (occurred at 2026-01-01_00-00-00)
The actor died unexpectedly before finishing this task.
	class_name: with_resources.<locals>.ResourceTrainable
	pid: 4242
	ip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: {kind} Worker exit detail: {detail}
"""
GONE = "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the OOM"
HUNGRY = "Task was killed due to the node running low on memory. Memory on the node was 1 GB."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", None),
        ("Failure # 1 (occurred at 2026-01-01_00-00-00)\n", None),
        (SETUP, "OSError: Failed to download runtime_env file package gcs://_ray_pkg_01.zip from the GCS."),
        (LOST.format(number=1, kind="SYSTEM_ERROR", detail=GONE), "killed, or crashed without a word"),
        (
            SETUP + LOST.format(number=2, kind="NODE_OUT_OF_MEMORY", detail=HUNGRY),
            "NODE_OUT_OF_MEMORY: Task was killed due to the node running low on memory.",
        ),
        (
            "Failure # 1 (occurred at now)\n1 worker(s) were killed due to the node running low on memory.\n",
            "NODE_OUT_OF_MEMORY: killed by Ray because the memory of its node ran low",
        ),
        ("Failure # 1 (occurred at now)\nsomething else\n", "something else"),
        ("Failure # 1 (occurred at now)\nThe actor died because its node has died. Node Id: ab\n", "its node was lost"),
    ],
)
def test_the_last_failure_is_said_in_a_phrase(text: str, reason: str | None, tmp_path: Path) -> None:
    assert death_reason(text, tmp_path) == reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            ":job_id:01\nFatal Python error: Segmentation fault\n\nThread 1:\n  File x\n",
            "Fatal Python error: Segmentat",
        ),
        ("terminate called after throwing an instance of 'x'\n  what():  y\n", "terminate called after"),
        (":job_id:01\nTraceback:\nValueError: odd\nImportError: libx.so: no such file\n", "ImportError: libx.so: no s"),
        (":job_id:01\nImportError: one that was caught\nand went on\n", None),
    ],
)
def test_a_crash_is_told_from_the_processs_own_log(tmp_path: Path, said: str, reason: str | None) -> None:
    (tmp_path / "worker-ab-01000000-4242.err").write_text(said)
    (tmp_path / "worker-cd-01000000-4243.err").write_text("Fatal Python error: another one")
    found = str(death_reason(LOST.format(number=1, kind="SYSTEM_ERROR", detail=GONE), tmp_path))
    assert found.startswith(reason or "killed")
