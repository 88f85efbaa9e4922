"""Names and values in the form that MLflow accepts: flat, with legal characters, within its limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 5000
"""Most characters of a key, a param's value and a tag's value that every supported MLflow server accepts."""
SEPARATOR = " · "
"""Separator of a trial's id and its settings in the name of its run."""
_ILLEGAL = re.compile(r"[^\w\-. :/]", re.ASCII)
_CUT = "..."


def legal_key(name: str) -> str:
    """Key with characters outside MLflow's alphabet replaced by `_`. MLflow also rejects `a//b` and `../a`."""
    key = _ILLEGAL.sub("_", name)
    key = "/".join(part for part in key.split("/") if part.strip(".")) or "_"
    return key if len(key) <= MAX_KEY else key[: MAX_KEY - len(_CUT)] + _CUT


def readable(value: Any, limit: int) -> str:
    """One line of text for a value: numbers as Python writes them, lists as JSON, cut to `limit` characters."""
    if isinstance(value, bool) or value is None or isinstance(value, list | tuple | dict):
        text = json.dumps(value, sort_keys=True, default=str)
    else:
        text = str(value)
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def flat_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested settings to dotted names; settings that are None are left out."""
    flat: dict[str, str] = {}
    for name, value in _flatten("", values):
        if value is not None:
            flat[legal_key(name)] = readable(value, MAX_PARAM)
    return flat


def tag_values(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags with legal keys, and values cut to MLflow's limit; None is left out."""
    return {legal_key(name): readable(value, MAX_TAG) for name, value in tags.items() if value is not None}


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics with legal names; non-finite values are left out, because MLflow would store a different number."""
    return {
        legal_key(name): float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) and math.isfinite(value)
    }


def _flatten(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        items += _flatten(name, value) if isinstance(value, Mapping) else [(name, value)]
    return items
