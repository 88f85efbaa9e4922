"""Names, folders and addresses of a sweep that cannot be used, each refused in a sentence before anything starts."""

from __future__ import annotations

import pwd
import re
from pathlib import Path
from typing import Any

import optuna
import pytest

from sdm_ray.config import EncoderSettings, RuntimeSettings, SweepSettings, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.data.readers import data_files
from sdm_ray.models.hub import resolve
from sdm_ray.sweep.records.folder import find_sweep
from sdm_ray.sweep.search.location import SETTINGS, check_location, own_storage, sweep_folder
from sdm_ray.tracking.address import at_home
from sdm_ray.tracking.place import choose_place


def settings(**values: Any) -> SweepSettings:
    return parse_settings(SweepSettings, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "name is '', and must be the name of one folder"),
        ({"name": ".."}, "name is '..', and must be the name of one folder"),
        ({"name": "a/b"}, "name is 'a/b', and must be the name of one folder"),
        ({"name": "a\nb"}, r"name is 'a\\nb', and must be the name of one folder"),
        ({"name": "x" * 300}, r"at most 200 bytes \(this has 300\)"),
        ({"output_dir": "/tmp/" + "x" * 300}, "output_dir holds the folder name 'x+...', longer than 255 bytes"),
        ({"output_dir": "/tmp/My%20Drive"}, "holds '%20', which Optuna and MLflow misread .* set storage and tracking"),
        ({"output_dir": "/tmp/what?"}, r"holds '\?', which Optuna and MLflow misread"),
        ({"output_dir": "/tmp/a#b", "storage": "sqlite:////tmp/x.db"}, "holds '#', .* or set tracking.uri$"),
        ({"output_dir": "~nobody-of-this-name/runs"}, "output_dir: there is no home folder for '~nobody-of"),
        ({"storage": "sqlite://"}, "storage is 'sqlite://', which is in memory"),
        ({"storage": "sqlite:///:memory:"}, "storage is .* in memory"),
        ({"storage": "optuna.db"}, "storage is 'optuna.db', and must be an address"),
        ({"storage_path": "foo://bar"}, "storage_path is 'foo://bar', and must be a folder that all nodes reach"),
        ({"storage_path": "bar"}, "storage_path is 'bar', and must be a folder that all nodes reach"),
        ({"tracking": {"experiment": ""}}, "tracking.experiment is '', and MLflow takes names of 1 to 500 characters"),
        ({"tracking": {"experiment": "x" * 501}}, "tracking.experiment is 'x+...', and MLflow takes"),
        ({"trial": {"runtime": {"num_threads": 99999}}}, "num_threads is 99999, and at most 1024"),
    ],
)
def test_what_cannot_be_used_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_location(settings(**values))


def test_a_sweep_that_has_begun_keeps_its_name(tmp_path: Path) -> None:
    begun = settings(name="group/a", output_dir=str(tmp_path))
    (tmp_path / "group" / "a").mkdir(parents=True)
    with pytest.raises(UsageError):
        check_location(begun)
    (tmp_path / "group" / "a" / SETTINGS).touch()
    check_location(begun)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": "{x} ü-2", "output_dir": "a b/c"},
        {"output_dir": "/tmp/100%"},
        {"output_dir": "/tmp/a#b", "tracking": {"enabled": False}},
        {"storage": "journal:///tmp/log", "storage_path": "s3://bucket/x?region=here"},
        {"storage": "sqlite:////tmp/optuna.db", "storage_path": "/mnt/all"},
    ],
)
def test_what_works_is_taken(values: dict[str, Any]) -> None:
    check_location(settings(**values))


def test_addresses_that_are_none_are_named() -> None:
    with pytest.raises(UsageError, match=r"storage_path is 'http://\[x', which is no address"):
        settings(storage_path="http://[x")


def test_optuna_opens_a_study_in_a_folder_with_braces(tmp_path: Path) -> None:
    """Optuna formats its address: `{x}` in a folder's name was a KeyError."""
    folder = tmp_path / "a{x}b"
    folder.mkdir()
    optuna.create_study(storage=own_storage(folder), study_name="x")
    assert (folder / "optuna.db").is_file()


def test_a_tilde_in_a_file_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands what stands in a settings file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sweep_folder(settings(output_dir="~/runs", name="n")) == tmp_path / "runs" / "n"
    (tmp_path / "runs" / "n").mkdir(parents=True)
    (tmp_path / "runs" / "n" / "sweep.yaml").touch()
    assert find_sweep("n", output_dir="~/runs") == find_sweep("~/runs/n") == tmp_path / "runs" / "n"
    assert at_home("sqlite:///~/o.db", "storage") == f"sqlite:///{tmp_path}/o.db"
    assert at_home("journal:///~/log", "storage") == f"journal:///{tmp_path}/log"
    tracking = settings(tracking={"uri": "sqlite:///~/m.db"}).tracking
    assert choose_place(tracking, tmp_path / "runs" / "n", environ={}).uri == f"sqlite:///{tmp_path}/m.db"


def test_without_a_home_folder_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user may have neither name nor HOME."""

    def unknown(_: object) -> None:
        raise KeyError

    for name in ("HOME", "SDM_RAY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UsageError, match=r"SDM_RAY_CACHE.*no home folder"):
        RuntimeSettings().cache_folder()
    with pytest.raises(UsageError, match=r"data\.source: there is no home folder for '~nobody-x/bios"):
        data_files("~nobody-x/bios.parquet")
    with pytest.raises(UsageError, match=r"encoder\.name: there is no home folder"):
        resolve(EncoderSettings(name="~nobody-x/bert"), Path("unused"), None)


def test_names_that_are_too_long_do_not_exist() -> None:
    long = "x" * 300
    with pytest.raises(UsageError, match="does not exist"):
        data_files(f"{long}.csv")
    assert data_files(long) is None
    with pytest.raises(UsageError, match=r"no sweep 'x+'"):
        find_sweep(long)
    with pytest.raises(UsageError, match=re.escape("does not exist")):
        resolve(EncoderSettings(name=f"./{long}"), Path("unused"), None)
