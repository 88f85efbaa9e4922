"""What people are told once in the course of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.result import Status
from sdm_ray.sweep.announcements import Announcements
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.sweep.state.state import SweepState
from tests.fakes import sweep as sweep_fakes
from tests.fakes.results import accuracies, trial_result


def told(folder: Path, ended: dict[str, Any], **changes: Any) -> list[str]:
    """What is said where the tuned reference ends so, and again at the end of a searched trial."""
    state, said = SweepState(sweep_fakes.settings(folder, **changes)), list[str]()
    announcements = Announcements(state, said.append)
    tuned = trial_result("tuned", method="tuned", **ended)
    state.start(Entry("tuned", "reference", "tuned"))
    state.start(Entry("t0000", "search", "mlac"))
    state.finish(tuned)
    for result in (tuned, trial_result("t0000", uninformative_checks={"label_flip": "seen"})):
        announcements.of_result(result)
        announcements.of_budget()
    return said


FLIPPED = "audit: the check label flip is uninformative on these data and keeps no trial off: seen"
SPENT = "search.max_hours (1e-09) have passed: no further point is tried"
GOOD: dict[str, Any] = {"metrics": accuracies(0.96, 0.8)}


@pytest.mark.parametrize(
    ("ended", "changes", "words"),
    [
        (GOOD, {}, [FLIPPED]),
        (GOOD | {"uninformative_checks": {"label_flip": "seen"}}, {}, [FLIPPED]),
        (GOOD, {"search__max_desired_drop": 0.05}, ["feasible: desired accuracy of at least 0.910", FLIPPED]),
        (
            GOOD,
            {"search__max_hours": 1e-9},
            [SPENT, FLIPPED],
        ),
        (
            {"status": Status.FAILED, "error": "no"},
            {"search__max_desired_drop": 0.05},
            [
                "the tuned reference failed, so search.max_desired_drop has nothing to compare with: "
                "no trial is held to it until --resume repeats the reference",
                FLIPPED,
            ],
        ),
    ],
)
def test_each_thing_is_said_once(
    tmp_path: Path, ended: dict[str, Any], changes: dict[str, Any], words: list[str]
) -> None:
    assert told(tmp_path, ended, **changes) == words
