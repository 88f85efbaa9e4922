"""Notices to users from code without a view: a separate logger, which a worker forwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("sdm_ray.notices")


def notice(text: str) -> None:
    """Emit a notice: to standard error, or to `gathered`."""
    log.warning(text)


@contextmanager
def gathered(notices: list[str]) -> Iterator[None]:
    """Collect notices of the block in a list instead."""

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
