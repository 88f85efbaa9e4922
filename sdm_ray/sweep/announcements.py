"""What people are told once in the course of a sweep, and not with every trial."""

from __future__ import annotations

from collections.abc import Callable

from sdm_ray.core.result import TrialResult
from sdm_ray.sweep.state.state import SweepState


class Announcements:
    """Says what a trial's end brings to light for the first time.

    Args:
        state: the sweep.
        say: takes a sentence for people.
    """

    def __init__(self, state: SweepState, say: Callable[[str], None]) -> None:
        self._state, self._say = state, say
        self._spent_is_known = False
        self._uninformative: set[str] = set()

    def of_result(self, result: TrialResult) -> None:
        """Say from when points are feasible, and which checks of the audit tell nothing on these data."""
        if self._state.trials[result.trial_id].point == "tuned":
            self._say_floor()
        for name, said in result.uninformative_checks.items():
            if name not in self._uninformative:
                self._uninformative.add(name)
                check = name.replace("_", " ")
                self._say(f"audit: the check {check} is uninformative on these data and keeps no trial off: {said}")

    def of_budget(self) -> None:
        """Say that a budget of hours is spent."""
        spent = None if self._spent_is_known else self._state.spent()
        if spent is not None:
            self._spent_is_known = True
            self._say(f"{spent}: no further point is tried")

    def _say_floor(self) -> None:
        """Say from which desired accuracy points are feasible, once the tuned reference has ended."""
        judgement = self._state.judgement
        if self._state.settings.search.max_desired_drop is None or judgement.floor_is_pending:
            return
        if judgement.desired_floor is None:
            self._say(
                "the tuned reference failed, so search.max_desired_drop has nothing to compare with: "
                "no trial is held to it until --resume repeats the reference"
            )
        else:
            self._say(f"feasible: desired accuracy of at least {judgement.desired_floor:.3f}")
