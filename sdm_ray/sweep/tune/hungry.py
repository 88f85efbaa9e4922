"""Lets Ray Tune survive a trial that Ray's memory monitor has killed.

Ray Tune treats the death of a trial's process as a failure of that trial if the exception is a `RayActorError`. For a
process that the memory monitor kills during a call, Ray raises `OutOfMemoryError`, which is not a subclass, and Tune
ends the whole run with `RuntimeError: Caught unexpected exception` (seen with the Ray version of
`infra/constraints.txt`).
"""

from __future__ import annotations

from functools import cache, wraps
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

DEATHS = (OutOfMemoryError, NodeDiedError)
"""Exceptions for the death of a process that are not subclasses of `RayActorError`."""


@cache
def treat_as_deaths() -> None:
    """Patch Tune to treat `DEATHS` as the death of the trial's process; a second call does nothing.

    If the installed Ray lacks the patched method, nothing changes, and Tune handles these exceptions in its own way.
    """
    given = getattr(RayActorManager, "_actor_task_failed", None)
    if given is None:
        return

    @wraps(given)
    def handle(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, DEATHS):
            exception = RayActorError(error_msg=str(exception))
        given(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = handle
