"""Messages that are shown once per sweep, not once per trial."""

from __future__ import annotations

from collections.abc import Callable

from sdm_ray.core.result import TrialResult
from sdm_ray.sweep.state.state import SweepState


class Announcements:
    """Shows each message once, when a trial's result first calls for it.

    Args:
        state: the sweep's state.
        say: shows a message to the user.
    """

    def __init__(self, state: SweepState, say: Callable[[str], None]) -> None:
        self._state, self._say = state, say
        self._spent_is_known = False
        self._uninformative: set[str] = set()

    def of_result(self, result: TrialResult) -> None:
        """Report the feasibility bound when it becomes known, and audit checks that are uninformative on the data."""
        if self._state.trials[result.trial_id].point == "tuned":
            self._say_floor()
        for name, said in result.uninformative_checks.items():
            if name not in self._uninformative:
                self._uninformative.add(name)
                check = name.replace("_", " ")
                self._say(f"audit: the check {check} is uninformative on these data and keeps no trial off: {said}")

    def of_budget(self) -> None:
        """Report that a budget of hours is spent."""
        spent = None if self._spent_is_known else self._state.spent()
        if spent is not None:
            self._spent_is_known = True
            self._say(f"{spent}: no further point is tried")

    def _say_floor(self) -> None:
        """Report the minimum desired accuracy of feasible points, once the tuned reference has ended."""
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
