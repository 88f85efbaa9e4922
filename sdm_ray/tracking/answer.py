"""Wait for the first answer of a server or database, up to a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sdm_ray.core.errors import UsageError
from sdm_ray.tracking.address import is_refusal, refused, unreachable

ANSWER_TIMEOUT_SECONDS = 10.0
"""Time limit for a server's first answer."""
SCHEMA_TIMEOUT_SECONDS = 60.0
"""Time limit for a database, which may have to create its tables."""


def within(connect: Callable[[], None], uri: str) -> None:
    """Connect within a time limit; a server that accepts the connection but does not answer counts as unreachable.

    Raises:
        UsageError: as raised by `connect`.
        RunError: if the server fails or does not answer in time.
    """
    seconds = ANSWER_TIMEOUT_SECONDS if uri.startswith("http") else SCHEMA_TIMEOUT_SECONDS
    failure: list[BaseException] = []

    def attempt() -> None:
        try:
            connect()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=attempt, name="sdm-ray-tracking-connect", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise unreachable(uri, f"nothing within {seconds:g} s")
    if not failure:
        return
    if isinstance(failure[0], UsageError):
        raise failure[0]
    words = " ".join(str(failure[0]).split()).partition(" [SQL: ")[0][:200]
    raise refused(uri, words) if is_refusal(words) else unreachable(uri, words)
