"""A training that is killed by the system goes on where its last checkpoint is, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from tests import ROOT
from tests.fakes import train_driver
from tests.fakes.meta import drive
from tests.fakes.train_driver import NUM_STEPS


def process(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fakes.train_driver", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_killed_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGKILL at a random step; where exactly it strikes within the step is left to chance too."""
    (tmp_path / "killed").mkdir()
    step = random.SystemRandom().randrange(1, NUM_STEPS)
    with process(tmp_path / "killed") as running:
        assert running.stdout is not None
        lines = iter(running.stdout.readline, "")
        struck = next((int(line) for line in lines if int(line) >= step), NUM_STEPS)
        running.kill()
    assert running.returncode in (-9, 0), "0 where it was faster than the signal"
    resumed, _ = drive(train_driver.trainer(tmp_path / "killed"))
    straight, _ = drive(train_driver.trainer(tmp_path / "straight"))
    assert straight is not None
    assert resumed is not None
    assert train_driver.written(resumed) == train_driver.written(straight), f"killed after step {struck}"
