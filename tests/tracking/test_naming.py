"""Names and values that MLflow takes, and addresses that it can be reached at."""

from __future__ import annotations

import logging
import pickle
import subprocess
from pathlib import Path

import pytest

from sdm_ray.config import TrackingSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.tracking import NoTracker, open_tracker
from sdm_ray.tracking.address import check_address, masked, sqlite_file, sqlite_uri
from sdm_ray.tracking.environment import environment_tags, git_commit
from sdm_ray.tracking.naming import MAX_KEY, MAX_PARAM, finite_metrics, flat_params, legal_key, tag_values


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("harmful/n50/accuracy", "harmful/n50/accuracy"),
        ("train.learning_rate", "train.learning_rate"),
        ("top@5 (val)", "top_5 _val_"),
        ("a//b", "a/b"),
        ("../up", "up"),
        ("größe", "gr__e"),
        ("//", "_"),
    ],
)
def test_keys_become_legal(name: str, legal: str) -> None:
    assert legal_key(name) == legal


def test_keys_are_legal_to_mlflow_itself() -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    for name in ("top@5 (val)", "a//b", "../up", "größe", "//", "x" * 1000, "a/./b", "/abs", "end/", "new\nline", ""):
        for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
            validate(legal_key(name))


def test_params_are_flat_readable_and_within_limits() -> None:
    flat = flat_params(
        {
            "train": {"learning_rate": 3e-4, "blocking": {"desired_base": 1.0}},
            "attack": {"batch_sizes": [8, 16], "class_balanced": True},
            "storage": None,
            "long": "x" * 10_000,
        }
    )
    assert flat["train.learning_rate"] == "0.0003"
    assert flat["train.blocking.desired_base"] == "1.0"
    assert flat["attack.batch_sizes"] == "[8, 16]"
    assert flat["attack.class_balanced"] == "true"
    assert "storage" not in flat
    assert len(flat["long"]) == MAX_PARAM
    assert flat["long"].endswith("...")
    assert len(legal_key("k" * 999)) == MAX_KEY


def test_only_finite_numbers_are_metrics() -> None:
    values = {"a": 1, "b": float("nan"), "c": float("inf"), "d": "text", "e": 0.5}
    assert finite_metrics(values) == {"a": 1.0, "e": 0.5}  # type: ignore[arg-type]


def test_tags_drop_none() -> None:
    assert tag_values({"seed": 3, "error": None}) == {"seed": "3"}


def test_environment_names_versions_and_hardware() -> None:
    tags = environment_tags()
    assert tags["version.torch"]
    assert int(tags["cpus"]) >= 1
    assert "mlflow.source.name" in tags


def test_git_commit_is_that_of_a_checkout_and_says_when_it_is_dirty(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    assert git_commit(tmp_path) is None, "a folder that the checkout does not track is not described by its commit"
    git("add", "file")
    git("commit", "-m", "first")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_passwords_are_masked() -> None:
    assert masked("postgresql://me:secret@db:5432/x") == "postgresql://me:***@db:5432/x"
    assert masked("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert masked("sqlite:////tmp/a:b@c.db") == "sqlite:////tmp/a:b@c.db"


def test_sqlite_uri_and_file_are_inverse(tmp_path: Path) -> None:
    path = tmp_path / "with space" / "50%25.db"
    assert sqlite_file(sqlite_uri(path)) == path
    assert sqlite_file("http://127.0.0.1") is None


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("./mlruns", "is a folder"),
        ("file:///tmp/mlruns", "is a folder"),
        ("gopher://x", "does not know"),
        ("http://", "names no host"),
        ("http://127.0.0.1:notaport", "is no address"),
        ("sqlite:////nonexistent/folder/m.db", "cannot be written"),
    ],
)
def test_addresses_that_cannot_work_are_refused(uri: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check_address(uri)
    assert "tracking.enabled=false" in str(caught.value)


def test_a_port_where_nobody_listens_is_said_at_once(free_port: int) -> None:
    with pytest.raises(RunError, match=f"MLflow server at http://127.0.0.1:{free_port} does not answer"):
        check_address(f"http://127.0.0.1:{free_port}")


def test_tracking_switched_off_does_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(TrackingSettings(enabled=False), tmp_path)
    assert isinstance(tracker, NoTracker)
    tracker.start_sweep("s", {}, {})
    tracker.log("t", {"a": 1.0}, 1)
    tracker.finish_sweep("complete")
    assert tracker.ui_hint() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_started_is_inert_and_can_be_pickled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = pickle.loads(pickle.dumps(open_tracker(TrackingSettings(), tmp_path)))
    with caplog.at_level(logging.WARNING):
        tracker.log("t", {"a": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
