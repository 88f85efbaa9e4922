"""Values from before the redesign: equal to the bit on the machine that recorded them, close elsewhere."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.token_fits import few_steps
from tests.golden import pins, worlds
from tests.golden.areas import AREAS, compute

RECORDED = pins.load()
CASES = [(area, case) for area, cases in RECORDED["values"].items() for case in cases]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny encoders and their data. What readers of token states find came later and is not pinned."""
    with few_steps():
        yield worlds.write(tmp_path_factory.mktemp("golden").resolve())


def test_areas_that_are_equal_to_the_bit_are_recorded_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pins.FILE.read_bytes()
    monkeypatch.setattr(pins, "machine", lambda: {**RECORDED["machine"], "cpu": "another"})
    monkeypatch.setattr(sys, "argv", ["golden", "record", "exact", "gradients"])
    with pytest.raises(SystemExit, match=r"^gradients: other areas were recorded on another machine"):
        runpy.run_module("tests.golden.__main__")
    assert pins.FILE.read_bytes() == before


def test_all_cases_are_recorded() -> None:
    assert {(area, case) for area, cases in AREAS.items() for case in cases.cases} == set(CASES)


@pytest.mark.parametrize(("area", "case"), CASES, ids=[f"{area}-{case}" for area, case in CASES])
def test_value_is_what_it_was(area: str, case: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    here, there = pins.machine(), RECORDED["machine"]
    kind = AREAS[area]
    if here != there and not kind.portable:
        pytest.skip("recorded on another machine")
    if kind.package and here[kind.package] != there[kind.package]:
        pytest.skip(f"recorded with {kind.package} {there[kind.package]}, this is {here[kind.package]}")
    tolerance = None if here == there else kind.tolerance
    found = compute(area, case, world)
    problems = list(pins.differences(found, RECORDED["values"][area][case], tolerance))
    assert not problems, "\n".join(problems[:20])
