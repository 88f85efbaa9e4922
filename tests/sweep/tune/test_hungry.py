"""A trial that Ray's memory monitor kills is a failure of that trial, not the end of the sweep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

from sdm_ray.sweep.tune import hungry
from sdm_ray.sweep.tune.deaths import OUT_OF_MEMORY, death_reason, is_from_outside

SAID = "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1) was 24 GB."


class Manager(RayActorManager):
    """Tune's own manager without resources."""

    def __init__(self) -> None:
        self._failed_actor_ids: set[int] = set()

    def _cleanup_actor(self, tracked_actor: Any) -> None:
        pass


def told(exception: Exception) -> list[tuple[str, Exception]]:
    """Whom Tune tells of an exception of a trial's task."""
    seen = list[tuple[str, Exception]]()
    actor = SimpleNamespace(actor_id=7, _on_error=lambda _, error: seen.append(("actor", error)))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _, error: seen.append(("trial", error)))
    Manager()._actor_task_failed(task, exception)
    return seen


@pytest.mark.parametrize("kind", [OutOfMemoryError, NodeDiedError])
def test_the_trial_is_told_that_its_process_died(kind: type[Exception]) -> None:
    hungry.treat_as_deaths()
    hungry.treat_as_deaths()
    seen = told(kind(SAID))
    assert [who for who, _ in seen] == ["actor", "trial"]
    assert all(isinstance(error, RayActorError) and str(error) == SAID for _, error in seen)


def test_other_exceptions_end_the_run_as_before() -> None:
    hungry.treat_as_deaths()
    with pytest.raises(RuntimeError, match="unexpected exception: odd"):
        told(ValueError("odd"))


def test_what_tune_writes_of_it_is_a_death_from_outside(tmp_path: Any) -> None:
    reason = death_reason(f"Failure # 1 (occurred at now)\n{SAID}\n", tmp_path)
    assert reason == OUT_OF_MEMORY
    assert is_from_outside(reason)
