"""Reports of reference models are cached under keys that say all that they depend on."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from sdm_ray.attack.families import token_probe
from sdm_ray.config.attack import AttackSettings
from sdm_ray.trial import floors
from tests.fakes.attack_world import drain


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that are asked for; nothing is built."""
    asked = list[str]()

    def cached(builds: Mapping[str, Any], *_: Any) -> Generator[Any, None, dict[str, Any]]:
        asked.extend(builds)
        return dict.fromkeys(builds)
        yield

    monkeypatch.setattr(floors, "cached_reports", cached)
    return asked


def ask(settings: AttackSettings) -> None:
    work: Any = SimpleNamespace(
        data=SimpleNamespace(digest="data"),
        cache_dir=None,
        context=SimpleNamespace(shared=None),
        sampler=lambda name: None,
    )
    reference: Any = SimpleNamespace(digest="random", name="random", trunk=None, params={}, knowledge=None)
    drain(floors.reference_reports(work, {"random": reference}, settings))


def test_reports_with_another_version_of_token_probe_are_not_reused(
    keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, tunes = AttackSettings(families=("token_probe",)), AttackSettings(families=("fine_tune",))
    for version in (token_probe.VERSION, token_probe.VERSION + 1):
        monkeypatch.setattr(token_probe, "VERSION", version)
        ask(reads)
        ask(tunes)
    assert keys[0] != keys[2], "what token_probe found before is not what it finds now"
    assert keys[1] == keys[3], "an attack without it is as it was"
