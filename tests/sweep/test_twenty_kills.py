"""Twenty deaths in the life of one sweep, of Ray's daemons or of a server that it needs: nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.frontier.tables import read_tables
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.tracking.client import create_database, new_client
from sdm_ray.tracking.outbox import SWEEP_RUN, Journal
from sdm_ray.tracking.sink import TRIAL_TAG
from tests.fakes import sweep as sweep_fakes
from tests.fakes import tune
from tests.sweep.test_crashes import facts
from tests.sweep.test_faults import (
    Driver,
    alive,
    changes,
    check_complete,
    entries,
    num_ended,
    trial_processes,
    wait_gone,
)
from tests.test_infra import free_port, postgres_binaries
from tests.tracking.test_mlflow import mlflow_server, stop

NUM_KILLS, NUM_TRIALS = 20, 25
END_SECONDS = 30.0
"""Within which a sweep ends whose Ray has died."""
START_SECONDS = 90.0
"""The same while Ray starts: Ray itself gives a start thirty seconds, and more on a busy machine."""
POINTS = [{sweep_fakes.RATE: 1e-3, sweep_fakes.WEIGHT: round(0.1 + 0.15 * index, 2)} for index in range(NUM_TRIALS)]
"""All points that a sweep tries: a sampler would draw others after a resume."""


def undisturbed(folder: Path, *further: str) -> list[tuple[Any, ...]]:
    """What the frontier's tables say of the same sweep where nothing happens."""
    given = dict(text.split("=", 1) for text in (*changes(NUM_TRIALS), *further))
    with tune.in_process():
        outcome = run_sweep(
            sweep_fakes.settings(folder, **given), trial_function="tests.fakes.sweep:smooth", view=SilentView()
        )
    return facts(read_tables(outcome.folder))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_twenty_kills_of_a_daemon_of_ray(tmp_path: Path, daemon: str) -> None:
    """Every fourth kill hits while Ray starts, the others while trials run; the sweep's process ends each time."""
    moments, resume, family = random.Random(daemon), list[str](), set[int]()
    waits, codes = list[float](), list[int]()
    points = f"search.points={json.dumps(POINTS)}"
    for kill in range(NUM_KILLS):
        driver, start_up = Driver(tmp_path, points, *resume, num_trials=NUM_TRIALS), kill % 4 == 3
        driver.wait_for(lambda driver=driver: daemon in daemons(driver))  # type: ignore[misc]
        if not start_up:
            driver.wait_for(lambda driver=driver: bool(driver.family() & {*trial_processes(tmp_path)}))  # type: ignore[misc]
        time.sleep(moments.uniform(0, 3))
        family |= driver.family()
        ended = num_ended(tmp_path)
        os.kill(daemons(driver)[daemon], signal.SIGKILL)
        start = time.monotonic()
        codes.append(driver.process.wait(START_SECONDS if start_up else END_SECONDS))
        waits.append(time.monotonic() - start)
        print(
            f"{daemon} {kill}: exit code {codes[-1]} after {waits[-1]:.1f} s, {num_ended(tmp_path)} trials have ended"
        )
        assert codes[-1] == 130 or (start_up and codes[-1] == 1), driver.output.read_text()
        assert num_ended(tmp_path) >= ended
        resume = ["--resume"] if (tmp_path / "fake" / "sweep.yaml").exists() else []
    assert 2 < num_ended(tmp_path) < NUM_TRIALS, "the kills are spread over the sweep"
    outcome = Driver(tmp_path, points, *resume, num_trials=NUM_TRIALS).outcome(600)
    check_complete(tmp_path, outcome, num_kills=NUM_KILLS, num_trials=NUM_TRIALS)
    assert facts(read_tables(tmp_path / "fake")) == undisturbed(tmp_path / "undisturbed", points)
    wait_gone(family, 120)
    print(f"{daemon}: {Counter(codes)}, the slowest end after {max(waits):.1f} s, all after {sum(waits):.0f} s")


def daemons(driver: Driver) -> dict[str, int]:
    """Processes of a driver by the name of their program."""
    commands = {pid: command.split() for pid, command in alive(driver.family()).items()}
    return {words[0].rpartition("/")[2]: pid for pid, words in commands.items() if words}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_outages_of_the_mlflow_server(tmp_path: Path) -> None:
    """It is killed and started again, and held up for longer than a request waits, in turns, while one sweep runs."""
    moments, port, database = random.Random(0), free_port(), tmp_path / "server.db"
    create_database(database)
    outages = tmp_path / sweep_fakes.OUTAGES
    outages.write_text("0")
    uri, points = f"http://127.0.0.1:{port}", f"search.points={json.dumps(POINTS)}"
    server = mlflow_server(database, port)

    def start(*arguments: str) -> Driver:
        given = (points, "tracking.enabled=true", f"tracking.uri={uri}", *arguments)
        return Driver(tmp_path, *given, num_trials=NUM_TRIALS, function="outlasting")

    driver = start()
    try:
        driver.wait_for(lambda: bool(trial_processes(tmp_path)))
        for outage in range(NUM_KILLS):
            time.sleep(moments.uniform(0, 3))
            assert driver.process.poll() is None, f"the sweep was over after {outage} outages"
            if outage % 2:
                os.killpg(server.pid, signal.SIGSTOP)
                time.sleep(moments.uniform(0, 12))
                os.killpg(server.pid, signal.SIGCONT)
            else:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                server = server_again(database, port)
            outages.write_text(str(outage + 1))
            print(f"outage {outage}: {num_ended(tmp_path)} trials have ended")
        in_time = num_ended(tmp_path)
        outcome = driver.outcome(600)
        names = ["tuned", *(f"t{index:04d}" for index in range(NUM_TRIALS))]
        assert outcome == {"interrupted": False, "ended": names, "failed": 0}
        assert facts(read_tables(tmp_path / "fake")) == undisturbed(tmp_path / "undisturbed", points)
        num_left = num_pending(tmp_path)
        for _ in range(5):  # each driver waits at its end for 45 s, which a busy machine exceeds
            if num_pending(tmp_path):
                driver = start("--resume")
                assert driver.outcome(600) == outcome
        assert num_pending(tmp_path) == 0
        client = new_client(uri)
        found = client.search_runs([client.get_experiment_by_name("sdm-ray").experiment_id])
        runs = {run.data.tags[TRIAL_TAG]: run for run in found}
        assert len(found) == len(runs)
        assert runs.keys() == {SWEEP_RUN, *names}
        assert {run.info.status for run in found} == {"FINISHED"}
        for name in names:
            assert runs[name].data.metrics.items() >= entries(tmp_path)[name].result.metrics.items()  # type: ignore[union-attr]
            history = client.get_metric_history(runs[name].info.run_id, "train/loss")
            steps = [metric.step for metric in history]
            assert steps
            assert len(steps) == len(set(steps))
            assert all(metric.value == 1.0 / metric.step for metric in history)
        print(f"{in_time} trials had ended after the last outage; --resume delivered {num_left} records")
    finally:
        driver.process.kill()
        stop(server)


def server_again(database: Path, port: int) -> subprocess.Popen[bytes]:
    """A server, also on a machine that is too busy for its first start."""
    for _ in range(3):
        with suppress(AssertionError):
            return mlflow_server(database, port)
    return mlflow_server(database, port)


def num_pending(folder: Path) -> int:
    """Records that a sweep has not delivered."""
    journal = Journal(folder / "fake" / "tracking")
    journal.close()
    return journal.count_pending()


class Postgres:
    """A server with a database for Optuna, on loopback, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        binaries = postgres_binaries()
        assert binaries is not None
        folder.mkdir()
        self._binaries, self._data, self._user = binaries, folder / "data", dict[str, Any]()
        if os.geteuid() == 0:  # Postgres refuses to run as root
            for parent in (folder, *folder.parents[:3]):
                parent.chmod(0o755)
            shutil.chown(folder, "postgres", "postgres")
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self.port = free_port()
        self._run("initdb", "-D", self._data, "-U", "sdm", "--auth=trust")
        self.start()
        self._run("createdb", *self._there(), "-U", "sdm", "optuna")

    def start(self) -> None:
        """Start the server, again and again while processes of a killed one hinder it."""
        command = [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), "-k", self._data]
        for _ in range(300):
            self.process = subprocess.Popen(
                [*command, "-c", "listen_addresses=127.0.0.1"], stdout=-3, stderr=-3, cwd="/", **self._user
            )
            while self.process.poll() is None:
                if subprocess.run([self._binaries / "pg_isready", *self._there()], stdout=-3).returncode == 0:
                    return
                time.sleep(0.05)
            time.sleep(0.1)
        raise AssertionError("Postgres does not start")

    def kill(self) -> None:
        """SIGKILL; its other processes end by themselves."""
        self.process.kill()
        self.process.wait()

    def _there(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port))

    def _run(self, program: str, *arguments: Any) -> None:
        subprocess.run([self._binaries / program, *arguments], check=True, capture_output=True, cwd="/", **self._user)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("in_process")
@pytest.mark.skipif(postgres_binaries() is None, reason="no Postgres on this machine")
def test_twenty_kills_of_postgres_under_optuna(tmp_path: Path) -> None:
    """Each sweep ends in a sentence or does not notice; the next driver goes on."""
    pytest.importorskip("psycopg2")
    server, moments, said = Postgres(tmp_path / "pg"), random.Random(0), list[str]()
    outages = tmp_path / sweep_fakes.OUTAGES
    outages.write_text("0")
    given = {
        "search.points": json.dumps(POINTS),
        "search.num_trials": str(NUM_TRIALS),
        "references": "[tuned]",
        "trial.train.num_outer_steps": "2",
    }
    storage = f"postgresql+psycopg2://sdm@127.0.0.1:{server.port}/optuna"
    settings = sweep_fakes.settings(tmp_path, storage=storage, **given)

    def kill_again_and_again() -> None:
        for kill in range(NUM_KILLS):
            time.sleep(moments.uniform(0, 2))
            server.kill()
            time.sleep(moments.uniform(0, 1))
            server.start()
            outages.write_text(str(kill + 1))

    killer = threading.Thread(target=kill_again_and_again, daemon=True)
    killer.start()
    try:
        outcome = None
        while outcome is None:
            try:
                outcome = run_sweep(
                    settings,
                    resume=(tmp_path / "fake" / "sweep.yaml").exists(),
                    trial_function="tests.fakes.sweep:outlasting",
                    view=SilentView(),
                )
            except (RunError, UsageError) as error:
                said.append(str(error))
                time.sleep(0.1)
        killer.join()
    finally:
        server.kill()
    assert not outcome.interrupted
    assert not outcome.failures
    assert len(outcome.results) == NUM_TRIALS + 1
    for result in outcome.results:
        assert len(sweep_fakes.events(result.output_dir, "finished")) == 1
    assert said
    assert all("Optuna" in text and "\n" not in text for text in said), said
    other = run_sweep(
        sweep_fakes.settings(tmp_path / "undisturbed", **given),
        trial_function="tests.fakes.sweep:smooth",
        view=SilentView(),
    )
    assert facts(read_tables(outcome.folder)) == facts(read_tables(other.folder))
    print(f"{len(said)} drivers ended early: {Counter(text[:120] for text in said).most_common(5)}")
