"""Drivers that are interrupted and killed: nothing is lost, nothing runs twice, nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from sdm_ray.config import digest
from sdm_ray.core.lock import InUse
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.state.ledger import Entry, read_record
from tests import ROOT
from tests.fakes import sweep as sweep_fakes

NUM_TRIALS, NUM_STEPS = 4, 50


def changes(num_trials: int) -> list[str]:
    return [
        f"search.num_trials={num_trials}", "references=[tuned]", f"trial.train.num_outer_steps={NUM_STEPS}",
    ]  # fmt: skip


class Driver:
    """A sweep in a session of its own, as a terminal starts it."""

    def __init__(self, folder: Path, *arguments: str, num_trials: int = NUM_TRIALS, function: str = "slow") -> None:
        self.output = folder / f"output-{time.monotonic_ns()}"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.fakes.sweep_driver",
                    str(folder),
                    function,
                    *arguments,
                    *changes(num_trials),
                ],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)

    def outcome(self, seconds: float = 300) -> dict[str, Any]:
        assert self.process.wait(seconds) == 0, self.output.read_text()
        outcome: dict[str, Any] = json.loads(self.output.read_text().splitlines()[-1])
        return outcome

    def family(self) -> set[int]:
        """The driver's process and all below it."""
        parents = {int(path.name): parent_of(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
        family = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return family


def parent_of(path: Path) -> int | None:
    try:
        return int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def alive(pids: set[int]) -> dict[int, str]:
    """Processes that still run (zombies do not), with their command lines."""
    running = {}
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                running[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return running


def listeners(pids: set[int]) -> list[str]:
    """Addresses that these processes listen on."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(str(descriptor.readlink()))
            except OSError:
                continue
    addresses = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                words = bytes.fromhex(fields[1].split(":")[0])
                packed = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                addresses.append(socket.inet_ntop(family, packed))
    return addresses


def wait_gone(pids: set[int], seconds: float = 30) -> None:
    """Wait for processes to end. Those of a killed cluster do so by themselves, its two agents after about a minute."""
    deadline = time.monotonic() + seconds
    while left := alive(pids):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def entries(folder: Path) -> dict[str, Entry]:
    """What the ledger says, read without touching it."""
    return read_record(folder / "fake").entries


def num_ended(folder: Path) -> int:
    return sum(entry.result is not None for entry in entries(folder).values())


def is_under_way(folder: Path, at_least: int) -> Callable[[], bool]:
    """Whether so many trials have ended and another has done some steps."""

    def check() -> bool:
        running = [trial_id for trial_id, entry in entries(folder).items() if entry.result is None]
        trials = folder / "fake" / "trials"
        busy = any(sweep_fakes.events(trials / trial_id, "step3") for trial_id in running)
        return num_ended(folder) >= at_least and busy

    return check


def check_complete(folder: Path, outcome: dict[str, Any], num_kills: int, num_trials: int = NUM_TRIALS) -> None:
    """Every trial ended once; no step but the one under way at a kill was done twice; Optuna knows them all."""
    names = ["tuned", *(f"t{index:04d}" for index in range(num_trials))]
    assert outcome == {"interrupted": False, "ended": names, "failed": 0}
    repeated = 0
    for name in names:
        trial = folder / "fake" / "trials" / name
        assert len(sweep_fakes.events(trial, "finished")) == 1
        counts = [len(sweep_fakes.events(trial, f"step{step}")) for step in range(1, NUM_STEPS + 1)]
        assert min(counts) == 1
        repeated += sum(counts) - NUM_STEPS
    assert repeated <= 2 * num_kills, "of the two trials that run at a kill, each repeats at most one step"
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{folder}/fake/optuna.db")
    trials = optuna.load_study(storage=f"sqlite:///{folder}/fake/optuna.db", study_name=study.study_name).trials
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") == num_trials
    assert set(states) <= {"COMPLETE", "FAIL"}, "no zombie is left"


def test_killed_then_resumed(tmp_path: Path) -> None:
    """SIGKILL takes a driver whose trials run and one that starts; a third one completes the sweep.

    The processes of the first end by themselves.
    """
    killed = Driver(tmp_path)
    killed.wait_for(is_under_way(tmp_path, 1))
    family = killed.family()
    assert len(family) > 5
    assert set(listeners(family)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    settings = sweep_fakes.settings(tmp_path, **dict(text.split("=", 1) for text in changes(NUM_TRIALS)))
    with pytest.raises(InUse, match=f"is in use by process {killed.process.pid} on"):
        run_sweep(settings, resume=True, trial_function="tests.fakes.sweep:slow", view=SilentView())
    killed.process.kill()
    killed.process.wait()
    resume = kill_at_random_moments(tmp_path, 1, seed=1, resume=["--resume"], family=family, every=1)
    check_complete(tmp_path, Driver(tmp_path, *resume).outcome(), num_kills=2)
    wait_gone(family, 120)
    assert not list(Path("/tmp").glob(f"sdm-{digest(str(tmp_path / 'fake'))}"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_clean(tmp_path: Path, number: signal.Signals) -> None:
    """As a terminal, `timeout` and `scancel` send them, to every process of the group; nothing is left behind."""
    driver = Driver(tmp_path)
    driver.wait_for(is_under_way(tmp_path, 0))
    family = driver.family()
    os.killpg(driver.process.pid, number)
    assert driver.outcome(60)["interrupted"]
    wait_gone(family)
    running = [name for name, entry in entries(tmp_path).items() if entry.result is None]
    assert running
    for name in running:
        trial = tmp_path / "fake" / "trials" / name
        assert sweep_fakes.events(trial, "closed") or not sweep_fakes.events(trial, "started")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_a_sweep_whose_ray_dies_is_interrupted_within_half_a_minute(tmp_path: Path, daemon: str) -> None:
    """Nothing is lost, doubled or left behind, and the next driver completes the sweep."""
    driver = Driver(tmp_path)
    driver.wait_for(is_under_way(tmp_path, 1))
    family, ended = driver.family(), num_ended(tmp_path)
    (victim,) = (pid for pid, command in alive(family).items() if command.split()[0].endswith(f"/{daemon}"))
    start = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    assert driver.process.wait(60) == 130, driver.output.read_text()
    assert time.monotonic() - start < 30
    assert "has died: the sweep ends; what has finished is kept" in driver.output.read_text()
    assert num_ended(tmp_path) >= ended
    wait_gone(family, 10)
    assert not list(Path("/tmp").glob(f"sdm-{digest(str(tmp_path / 'fake'))}"))
    check_complete(tmp_path, Driver(tmp_path, "--resume").outcome(), num_kills=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """Every fourth one hits a driver that starts, the others hit one whose trials run."""
    num_trials, family = 25, set[int]()
    resume = kill_at_random_moments(tmp_path, 20, seed=0, resume=[], family=family, num_trials=num_trials)
    assert 2 < num_ended(tmp_path) < num_trials, "the kills are spread over the sweep"
    outcome = Driver(tmp_path, *resume, num_trials=num_trials).outcome(300)
    check_complete(tmp_path, outcome, num_kills=20, num_trials=num_trials)
    wait_gone(family, 120)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trial_processes_killed_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL takes ten processes of running trials; each goes on from its checkpoint in a fresh process."""
    driver, moments, killed = Driver(tmp_path, "resources.max_failures=10"), random.Random(0), list[int]()
    while len(killed) < 10 and driver.process.poll() is None:
        time.sleep(moments.uniform(0.1, 1.5))
        victims = [pid for pid in trial_processes(tmp_path) if pid in driver.family()]
        if victims:
            killed.append(moments.choice(victims))
            os.kill(killed[-1], signal.SIGKILL)
            wait_gone({killed[-1]})
    assert len(set(killed)) == 10, driver.output.read_text()
    check_complete(tmp_path, driver.outcome(300), num_kills=10)


def trial_processes(folder: Path) -> list[int]:
    """Processes of trials that have begun and not finished."""
    found = []
    for path in folder.glob("fake/trials/*/events"):
        lines = [line.split() for line in path.read_text().splitlines()]
        if lines and lines[-1][0].startswith("step"):
            found.append(int(lines[-1][1]))
    return found


def kill_at_random_moments(
    folder: Path,
    count: int,
    *,
    seed: int,
    resume: list[str],
    family: set[int],
    every: int = 4,
    num_trials: int = NUM_TRIALS,
) -> list[str]:
    """Start and kill drivers of one sweep: one in `every` while it starts, the others while their own trials run.

    Adds their processes to `family` and gives the arguments of the next driver.
    """
    moments = random.Random(seed)
    for kill in range(count):
        driver = Driver(folder, *resume, num_trials=num_trials)
        start_up = kill % every == every - 1
        while not start_up and not driver.family() & {*trial_processes(folder)} and driver.process.poll() is None:
            time.sleep(0.05)
        deadline = time.monotonic() + moments.uniform(0, 10 if start_up else 3)
        while time.monotonic() < deadline and driver.process.poll() is None:
            family |= driver.family()
            time.sleep(0.1)
        driver.process.kill()
        driver.process.wait()
        resume = ["--resume"] if (folder / "fake" / "sweep.yaml").exists() else []
    return resume
