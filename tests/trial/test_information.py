"""What sites tell, and what is kept of random initialisation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdm_ray.trial import information
from sdm_ray.trial.floors import Reference
from sdm_ray.trial.information import told_by
from sdm_ray.trial.release import Release
from sdm_ray.trial.workspace import open_workspace, trunk_params
from tests.fakes.attack_world import drain
from tests.golden import worlds


def test_random_initialisation_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(worlds.write(tmp_path))
    settings = worlds.trial(tmp_path, "bert")
    work = open_workspace(settings)
    trunk = work.trunk(settings.encoder, "pretrained", 0)
    random = Reference.untrained(work, settings.encoder, "random", settings.attack, 0)
    release = Release(trunk=trunk, params=trunk_params(trunk), encoder=settings.encoder)
    first = drain(told_by(work, random, 0))
    read, original = [], information.measure_information

    def counting(trunk: object, *rest: object) -> object:
        read.append(trunk)
        return original(trunk, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(information, "measure_information", counting)
    assert drain(told_by(work, random, 0)) == first
    assert read == []
    (entry,) = (work.cache_dir / "information").glob("*.json")
    kept = json.loads(entry.read_text())
    entry.write_text(json.dumps(kept["told"]))
    assert drain(told_by(work, random, 0)) == first, "an entry of before"
    assert read == []
    entry.write_text(json.dumps(kept | {"asked": "other", "told": []}))
    assert drain(told_by(work, random, 0)) == first, "an entry of something else"
    assert read == [random.trunk]
    read.clear()
    mine = drain(told_by(work, release, 0))
    assert read == [trunk]
    assert {told.layer for told in first} == {told.layer for told in mine} == {-2, -1, 0, 1, 2}
