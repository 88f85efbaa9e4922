"""A config or a sweep's folder from somebody else chooses no folder and no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdm_ray.cli.foreign import check_address, own_settings
from sdm_ray.config import Origin, TrialSettings
from sdm_ray.core.errors import UsageError

SERVER, CACHE = "http://evil:5000", "/elsewhere/cache"


def config(**origin: str) -> TrialSettings:
    """What `sdm-ray best` writes for a trial of the sweep `mine`."""
    values = {"sweep": "mine", "trial_id": "t0", "rule": "knee", "sweep_id": "1", "tracking_uri": SERVER} | origin
    runtime = {"cache_dir": CACHE, "num_threads": 3}
    return TrialSettings.model_validate({"runtime": runtime, "origin": Origin.model_validate(values).model_dump()})


def sweep(*, cache: str = CACHE, uri: str = SERVER, sweep_id: str = "1") -> None:
    folder = Path("runs") / "mine"
    (folder / "tracking").mkdir(parents=True)
    (folder / "tracking" / "sweep_id").write_text(f"{sweep_id}\n")
    document = f"name: mine\ntrial: {{runtime: {{cache_dir: {cache}}}}}\ntracking: {{uri: '{uri}'}}\n"
    (folder / "sweep.yaml").write_text(document)


def obeyed(settings: TrialSettings) -> tuple[str | None, str | None]:
    assert settings.origin is not None
    assert settings.runtime.num_threads == 3
    return settings.runtime.cache_dir, settings.origin.tracking_uri


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_strangers_config_chooses_neither_cache_nor_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert obeyed(own_settings(config(), [])) == (None, None)
    said = capsys.readouterr().err
    assert f"runtime.cache_dir of the config ({CACHE}) is not used" in said
    assert f"add --set runtime.cache_dir={CACHE}" in said
    assert f"add --tracking-uri {SERVER}" in said


def test_what_the_person_names_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    named = [f"runtime.cache_dir={CACHE}", f"origin.tracking_uri={SERVER}"]
    assert obeyed(own_settings(config(), named)) == (CACHE, SERVER)
    assert capsys.readouterr().err == ""


def test_the_persons_own_sweep_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    assert obeyed(own_settings(config(), [])) == (CACHE, SERVER)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"sweep_id": "2"}, (None, None)),
        ({"cache": "/mine"}, (None, SERVER)),
        ({"uri": "http://mine:5000"}, (CACHE, None)),
    ],
)
def test_a_sweep_of_the_same_name_vouches_only_for_what_is_its_own(
    there: dict[str, str], expected: tuple[str | None, str | None]
) -> None:
    sweep(**there)
    assert obeyed(own_settings(config(), [])) == expected


@pytest.mark.parametrize("name", ["../runs/mine", "..", "/tmp", "x" * 5000])
def test_a_config_finds_no_sweep_outside_runs(name: str) -> None:
    sweep()
    assert obeyed(own_settings(config(sweep=name), [])) == (None, None)


def test_a_file_of_the_persons_own_is_taken_as_it_is() -> None:
    settings = TrialSettings.model_validate({"runtime": {"cache_dir": CACHE}})
    assert own_settings(settings, []) is settings


def test_a_strangers_sweep_folder_names_no_server(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"names the server http://evil:5000, .*add --tracking-uri http://evil:5000"):
        check_address(tmp_path / "downloads" / "mine", SERVER)
    check_address(tmp_path / "downloads" / "mine", None)
    check_address(tmp_path / "downloads" / "mine", "sqlite:///x.db")
    check_address(tmp_path / "runs" / "mine", SERVER)
