"""Copies of folders on shared storage: complete at every moment, and all that nodes without a shared folder need."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import Status
from sdm_ray.frontier.tables import read_tables
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.cluster.mirror import MANIFEST, Mirror, below
from sdm_ray.sweep.cluster.worker import TrialWorker
from tests.fakes import sweep as sweep_fakes
from tests.sweep.cluster.test_worker import job, run


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def test_a_copy_follows_its_folder_and_comes_back(tmp_path: Path) -> None:
    here, there, copy = tmp_path / "here", tmp_path / "there", tmp_path / "copy"
    write(here, a="1", sub__b="2", **{".lock": "x"})
    mirror = Mirror(here, f"file://{copy}")
    assert not mirror.exists()
    assert mirror.push() == 2
    assert mirror.push() == 0
    assert read(copy) == {"a": "1", "sub/b": "2"}, "locks stay where they are"
    (here / "a").unlink()
    write(here, sub__b="22", c="3")
    assert mirror.push() == 2
    assert read(copy) == {"sub/b": "22", "c": "3"}
    write(there, old="0", sub__b="other")
    other = Mirror(there, f"file://{copy}")
    assert other.pull()
    assert read(there) == {"sub/b": "22", "c": "3"}
    assert other.push() == 0
    top = Mirror(here, f"file://{tmp_path}/top", recursive=False)
    top.push()
    assert read(tmp_path / "top") == {"c": "3"}
    assert not Mirror(tmp_path / "empty", f"file://{tmp_path}/nothing").pull()


def test_a_push_that_is_cut_off_leaves_the_copy_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    write(here, step1="1")
    Mirror(here, f"file://{copy}").push()
    (here / "step1").unlink()
    write(here, step2="2", step3="3")

    def cut(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", cut)
        with pytest.raises(RunError, match=r"cannot copy .*No space left"):
            Mirror(here, f"file://{copy}").push()
    fresh = tmp_path / "fresh"
    assert Mirror(fresh, f"file://{copy}").pull()
    assert read(fresh) == {"step1": "1"}


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="storage_path 'nowhere://bucket' cannot be used"):
        Mirror(tmp_path, "nowhere://bucket")
    for name in ("../outside", "/etc/outside"):
        write(tmp_path / "copy", **{MANIFEST: json.dumps({"files": [name]})})
        with pytest.raises(RunError, match="lies outside its folder"):
            Mirror(tmp_path / "here", f"file://{tmp_path}/copy").pull()
    write(tmp_path / "copy", **{MANIFEST: "{"})
    with pytest.raises(RunError, match="is damaged"):
        Mirror(tmp_path / "here", f"file://{tmp_path}/copy").pull()


def test_a_trial_goes_on_on_another_node(tmp_path: Path) -> None:
    """Two nodes without a common folder: the second finds the checkpoint of the first."""
    options = {"mirror": f"file://{tmp_path}/storage", "function": "slow"}
    first = TrialWorker(job(tmp_path / "node1", **options))
    first.advance(0.3)
    first.close()
    second = TrialWorker(job(tmp_path / "node2", **options))
    second.advance(0.0)
    second.close()
    steps = [int((tmp_path / node / "t0009" / "checkpoint").read_text()) for node in ("node1", "node2")]
    assert steps[1] == steps[0] + 1
    assert len(sweep_fakes.events(tmp_path / "node2" / "t0009", "started")) == 2, "its log came along"


def test_a_result_that_cannot_be_stored_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = TrialWorker(job(tmp_path, "smooth", mirror=f"file://{tmp_path}/storage"))

    def refuse(mirror: Mirror) -> int:
        raise RunError("cannot copy: the bucket is gone")

    monkeypatch.setattr(Mirror, "push", refuse)
    result = run(worker)
    assert (result.status, result.error) == (Status.FAILED, "cannot copy: the bucket is gone")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket behind the S3 protocol, on loopback; gives a URI in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    names = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in names.items():
                patch.setenv(name, value)
            host, port = server.get_host_and_port()
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
            client.create_bucket(Bucket="runs")
            yield f"s3://runs/team?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


def test_names_go_before_the_query() -> None:
    assert below("s3://runs/team/?region=us-east-1", "fake") == "s3://runs/team/fake?region=us-east-1"
    assert below("file:///runs", "fake") == "file:///runs/fake"


def test_a_bucket_keeps_a_folder(tmp_path: Path, bucket: str) -> None:
    here, uri = tmp_path / "here", below(bucket, "one")
    write(here, a="1", sub__b="2")
    mirror = Mirror(here, uri)
    assert (mirror.exists(), mirror.push(), mirror.exists()) == (False, 2, True)
    (here / "a").unlink()
    mirror.push()
    assert Mirror(tmp_path / "there", uri).pull()
    assert read(tmp_path / "there") == {"sub/b": "2"}
    with pytest.raises(RunError, match=r"cannot copy .*nobucket"):
        Mirror(here, uri.replace("runs", "nobucket")).push()


def test_a_sweep_is_resumed_from_its_copy_alone(tmp_path: Path, bucket: str, in_process: None) -> None:
    """The driver's machine is lost, Optuna's file with it: another one goes on, and ends with the same frontier."""
    functions = {"trial_function": "tests.fakes.sweep:smooth", "final_function": "tests.fakes.sweep:final"}
    common = {"storage_path": bucket, "references": "[tuned]", "final": "{num_points: 1}"}
    settings = sweep_fakes.settings(tmp_path / "one", search__num_trials=3, **common)
    first = run_sweep(settings, view=SilentView(), **functions)
    assert not first.failures
    moved = sweep_fakes.settings(tmp_path / "two", search__num_trials=5, **common)
    with pytest.raises(UsageError, match="already holds a sweep; add --resume"):
        run_sweep(moved, view=SilentView(), **functions)
    shutil.rmtree(tmp_path / "one")
    second = run_sweep(moved, resume=True, view=SilentView(), **functions)
    assert not second.failures
    by_id = {point.trial_id: point for point in read_tables(second.folder)}
    assert by_id.keys() == {"tuned", *(f"t000{index}" for index in range(5))}
    for point in first.points:
        assert by_id[point.trial_id].params == point.params
    for entry in second.results:
        folder = second.folder / "trials" / entry.trial_id
        assert (folder / "result.json").exists(), "fetched"
        assert len(sweep_fakes.events(folder, "finished")) == 1


def test_a_push_that_is_cut_off_leaves_changed_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    write(here, ledger="one\n")
    mirror = Mirror(here, f"file://{copy}")
    mirror.push()
    write(here, ledger="one\ntwo\n")

    def cut(source: Any, target: Any) -> None:
        target.write(source.read()[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", cut)
        with pytest.raises(RunError, match="No space left"):
            mirror.push()
    assert (copy / "ledger").read_text() == "one\n"
    assert mirror.push() == 1
    assert read(copy) == {"ledger": "one\ntwo\n"}, "nothing else is left beside it"


def test_a_file_that_vanishes_while_it_is_copied_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    write(here, kept="1", vanishing="2")
    opened = Path.open

    def vanish(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "vanishing":
            path.unlink()
        return opened(path, *args, **options)

    mirror = Mirror(here, f"file://{copy}")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", vanish)
        assert mirror.push() == 1
    assert read(copy) == {"kept": "1"}
    write(here, vanishing="3")
    assert mirror.push() == 1
    assert read(copy) == {"kept": "1", "vanishing": "3"}


def test_a_database_in_use_is_copied_by_its_own_backup(tmp_path: Path) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    here.mkdir()
    with closing(sqlite3.connect(here / "optuna.db")) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE points (value INTEGER)")
        writer.commit()
        mirror = Mirror(here, f"file://{copy}")
        mirror.push()
        writer.execute("INSERT INTO points VALUES (7)")
        writer.commit()  # into the write-ahead log: the database's own file may stay as it was
        assert mirror.push() == 1
        writer.execute("INSERT INTO points VALUES (8)")  # half a transaction must not show
        write(here, **{"trials.jsonl": "{}", "optuna.db-journal": "half"})
        mirror.push()
        assert {path.name for path in copy.iterdir()} == {"optuna.db", "trials.jsonl", MANIFEST}
        with closing(sqlite3.connect(copy / "optuna.db")) as reader:
            assert reader.execute("SELECT value FROM points").fetchall() == [(7,)]


def test_a_copy_of_before_brings_no_half_of_a_database(tmp_path: Path) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    write(
        copy, **{"optuna.db": "1", "optuna.db-journal": "2", MANIFEST: '{"files": ["optuna.db", "optuna.db-journal"]}'}
    )
    write(here, **{"optuna.db-journal": "3"})
    assert Mirror(here, f"file://{copy}").pull()
    assert read(here) == {"optuna.db": "1"}
