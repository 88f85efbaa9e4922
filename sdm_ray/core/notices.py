"""Sentences that people must hear from code that has no view: a log of their own, which a worker passes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("sdm_ray.notices")


def notice(text: str) -> None:
    """Say a sentence: on standard error, or to whoever gathers them."""
    log.warning(text)


@contextmanager
def gathered(notices: list[str]) -> Iterator[None]:
    """Put what is said in the block into a list instead."""

    class Gatherer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notices.append(record.getMessage())

    handler, propagated = Gatherer(), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagated
