"""Works that share what they build with other processes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sdm_ray.core.progress import Progress
from sdm_ray.trial.cached import in_turns


def work(*stages: str) -> Generator[Progress, None, str]:
    for stage in stages:
        yield Progress(stage, 0, 1, {})
    return stages[0]


def test_one_that_waits_lets_the_next_go_on() -> None:
    found: list[Any] = []

    def noting() -> Generator[Progress, None, None]:
        found.extend((yield from in_turns(work("wait", "wait", "late"), work("scratch"), work("wait", "attack"))))

    # "wait" is said where all that are left wait, and not before.
    assert [progress.stage for progress in noting()] == ["scratch", "wait", "attack", "wait", "late"]
    assert found == ["wait", "scratch", "wait"], "in the order in which the works were given"


def test_nothing_to_do() -> None:
    assert list(in_turns()) == []


def test_what_is_given_up_is_let_go() -> None:
    closed: list[str] = []

    def held(name: str) -> Generator[Progress, None, None]:
        try:
            yield Progress("wait" if name == "first" else "attack", 0, 1, {})
        finally:
            closed.append(name)

    turns = in_turns(held("first"), held("second"))
    assert next(turns).stage == "attack"
    turns.close()
    assert closed == ["first", "second"]
