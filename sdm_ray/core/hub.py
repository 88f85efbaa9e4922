"""Helpers for the Hugging Face hub: form of ids, logging, and long messages."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER_SECONDS = 5.0
"""Timeout of the check whether the hub answers."""

_PART = r"[\w.-]+"
_ID = re.compile(f"{_PART}/{_PART}")
_BARE_ID = re.compile(_PART)
_SENTENCE_END = re.compile(r"(?<=[a-z)'\"])\. ")


def is_hub_id(name: str, *, bare: bool = False) -> bool:
    """Whether a name has the form owner/name of a hub id; `bare` also allows old ids without an owner."""
    return bool(_ID.fullmatch(name) or (bare and _BARE_ID.fullmatch(name)))


def brief(error: BaseException) -> str:
    """First sentence of an error's message, on one line and without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _SENTENCE_END.split(text)[0][:300].rstrip(".")


def is_away() -> bool:
    """Whether the hub does not answer within `ANSWER_SECONDS`; its own client would retry for minutes.

    False in offline mode (`HF_HUB_OFFLINE`), in which the client fails immediately.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception:  # name, network, proxy and certificate errors have no common base
        return True
    return False


@contextmanager
def cached_only() -> Iterator[None]:
    """Restrict `datasets` and the hub's client to their caches; they fail immediately if an entry is missing."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence `huggingface_hub`, which otherwise logs every retry without network."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
