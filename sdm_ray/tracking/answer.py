"""Waiting for the first answer of a server or database, for so long and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sdm_ray.core.errors import UsageError
from sdm_ray.tracking.address import is_refusal, refused, unreachable

ANSWER_TIMEOUT_SECONDS = 10.0
"""How long a server may take over its first answer."""
SCHEMA_TIMEOUT_SECONDS = 60.0
"""How long a database may take over it: it may have to create its tables."""


def within(connect: Callable[[], None], uri: str) -> None:
    """Connect within a time limit; a server that takes the connection and then does not answer counts as away.

    Raises:
        UsageError: as `connect` raises it.
        RunError: when the server fails or does not answer in time.
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
    words = " ".join(str(failure[0]).split())[:200]
    raise refused(uri, words) if is_refusal(words) else unreachable(uri, words)
