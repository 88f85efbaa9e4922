"""Result of a trial, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sdm_ray.core.errors import DamagedError
from sdm_ray.core.files import MALFORMED, nan_for_null, null_for_nan, read_json, reason, set_aside, write_json
from sdm_ray.core.notices import notice

RESULT = "result.json"
"""File in a trial's folder, written last."""
FINAL = "-final"
"""Suffix of the trial id of a final attack on a trial's model; its measurements replace the trial's."""


INPUTS = ("data", "encoder")
"""Entries of the provenance, other than settings, that must agree for two results to be comparable."""


class Status(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Result of one trial: its metrics, and the location of its files."""

    trial_id: str
    config_hash: str
    method: str
    seed: int
    status: Status
    metrics: dict[str, float]
    output_dir: Path
    """Contains `config.yaml`, `result.json` and `train.parquet`; with simulated adversaries `trajectory.parquet` and
    `trajectory.png`; and, unless training was stopped, `attack.parquet`, `attack.json` and `model/`."""
    error: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    """Searched settings by dotted path; empty outside a sweep."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Sources and digests of data and encoder, digests of attack and released weights, versions and device."""
    failed_checks: dict[str, str] = field(default_factory=dict)
    """Findings of failed checks of the audit, by check."""
    uninformative_checks: dict[str, str] = field(default_factory=dict)
    """The same for checks that a reference fails too, so that they show nothing about the model."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values; `output_dir` is left out, so that a folder can be moved."""
        values = asdict(self)
        del values["output_dir"]
        return {**values, "status": str(self.status)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], output_dir: Path) -> TrialResult:
        """Inverse of `to_dict`, for a result in `output_dir`.

        Raises:
            ValueError: if a value has the wrong type.
        """
        check_kinds(values, _KINDS)
        return cls(**{**values, "status": Status(values["status"]), "output_dir": output_dir})


_TYPES: dict[str, tuple[type, ...]] = {"text": (str,), "whole": (int,), "number": (int, float), "mapping": (dict,)}
_WORDS = {
    "text": "text", "whole": "a whole number", "number": "a number", "mapping": "a mapping",
    "texts": "a mapping to text", "numbers": "a mapping to numbers",
}  # fmt: skip
_KINDS = {
    **dict.fromkeys(("trial_id", "config_hash", "method", "status"), "text"),
    "seed": "whole", "params": "mapping", "metrics": "numbers",
    **dict.fromkeys(("provenance", "failed_checks", "uninformative_checks"), "texts"),
}  # fmt: skip


def check_kinds(values: Any, kinds: Mapping[str, str]) -> None:
    """Check the types of values that were read from a file; absent values are not checked.

    Args:
        values: by name.
        kinds: type by name: `text`, `whole`, `number`, `mapping`, or `numbers` and `texts`, which are mappings to
            these.

    Raises:
        ValueError: with the name, the value and the required type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{_shown(values)} stands where a mapping belongs")
    for name, kind in kinds.items():
        if name in values and not _is_kind(values[name], kind):
            raise ValueError(f"{name} is {_shown(values[name])}, and must be {_WORDS[kind]}")


def _is_kind(value: Any, kind: str) -> bool:
    if kind in ("numbers", "texts"):
        return isinstance(value, dict) and all(_is_kind(item, kind[:-1]) for item in value.values())
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def other_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Phrase with both digests if data or encoder differ, as far as both sides have them; otherwise None."""
    differ = [name for name in INPUTS if before.get(name) and now.get(name) and before[name] != now[name]]
    phrases = [f"the {name} had digest {before[name][:12]} and now {now[name][:12]}" for name in differ]
    return " and ".join(phrases) or None


def read_result(output_dir: Path) -> TrialResult | None:
    """Result in a trial's folder; None if the trial has not finished.

    Raises:
        DamagedError: if it contains something else.
        RunError: if it cannot be read.
    """
    path = output_dir / RESULT
    if not path.exists():
        return None
    values = read_json(path)
    try:
        return TrialResult.from_dict({**values, "metrics": nan_for_null(values["metrics"])}, output_dir)
    except MALFORMED as error:
        raise DamagedError(
            f"{path} is damaged ({reason(error)}); delete it, and the same command makes it anew"
        ) from None


def readable_result(output_dir: Path) -> TrialResult | None:
    """As `read_result`, but a damaged file is moved aside with a notice, and None is returned.

    Raises:
        RunError: if it cannot be read or moved.
    """
    try:
        return read_result(output_dir)
    except DamagedError as error:
        aside = set_aside(output_dir / RESULT)
        notice(f"the result was damaged ({reason(error)}) and is made anew; it lies in {aside.name}")
        return None


def write_result(result: TrialResult) -> None:
    """Write a result to its folder, atomically, for `read_result`. NaN becomes null, because JSON has no NaN.

    Raises:
        RunError: if the file cannot be written.
    """
    values = result.to_dict()
    write_json(result.output_dir / RESULT, values | {"metrics": null_for_nan(values["metrics"])}, sync=True)
