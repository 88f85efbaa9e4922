"""Event log of a sweep's trials, from which it resumes: one JSON line per event, synced to disk at once.

An incomplete last line, left by a killed driver, is cut off. Damaged lines elsewhere are skipped when a sweep is only
displayed; when it is resumed, they are repaired, or the sweep does not start.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdm_ray.config import Method
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import (
    MALFORMED,
    LineFile,
    atomic_path,
    copy_aside,
    nan_for_null,
    null_for_nan,
    reason,
    write_bytes,
)  # fmt: skip
from sdm_ray.core.result import TrialResult, check_kinds

FILE = "trials.jsonl"
Role = Literal["reference", "search", "final"]
"""Role of a trial: a reference, a searched trial, or the final attack on the model of either."""


@dataclass
class Entry:
    """One trial: its specification and its result (None until it has ended)."""

    trial_id: str
    role: Role
    method: Method
    """Training method."""
    number: int | None = None
    """Number of the Optuna trial; None for references and final attacks."""
    params: dict[str, Any] = field(default_factory=dict)
    """Searched settings by dotted path."""
    point: str = ""
    """Id of the trial's point: the id of the point's first trial. Trials of a point differ in their training seed."""
    seed_index: int = 0
    """Index of the training seed within the point, from 0."""
    result: TrialResult | None = None
    seconds: float = 0.0
    """Time for which the trial occupied a process, under the driver that recorded its end."""
    num_killed: int = 0
    """How often a driver gave the trial up because its process was ended from outside."""
    killed: str = ""
    """Reason for the latest of these deaths."""

    def __post_init__(self) -> None:
        self.point = self.point or self.trial_id


@dataclass
class Record:
    """Contents of a ledger in memory."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """Trials by id, in the order of their start."""
    rungs: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """(desired, harmful) accuracy on validation, by outer step and trial."""
    elapsed: float = 0.0
    """Run time of the sweep in seconds at the end of its last trial, including earlier drivers."""
    study_name: str | None = None
    """Name of the Optuna study; None before it is created."""
    sampler_options: dict[str, Any] | None = None
    """Options of Optuna's sampler; None for sweeps that began before the options were recorded."""
    damaged: list[str] = field(default_factory=list)
    """Lines that cannot be read, each with the reason; empty if damaged lines are not accepted."""


def read_record(folder: Path, *, around: bool = False) -> Record:
    """Read a sweep's ledger without changing it; an incomplete last line is ignored.

    Args:
        folder: folder of the sweep.
        around: skip damaged lines, and list them in the record.

    Raises:
        RunError: if a line other than the last is damaged, unless `around`; if the file cannot be read.
    """
    record, _ = _read(folder)
    if record.damaged and not around:
        raise RunError(
            f"{folder / FILE}, {record.damaged[0]}, is damaged; restore it, or let `sdm-ray sweep --resume` "
            "make up for it"
        )
    return record


class Ledger:
    """Appends events to `trials.jsonl`; `record` holds its contents at the time of opening."""

    def __init__(self, folder: Path) -> None:
        """Open the file, or create it; an incomplete last line is cut off.

        Damaged lines elsewhere are removed, and a copy of the damaged file is kept. If this loses a trial's result, the
        trial is run again, or its result is read from its `result.json`.

        Raises:
            RunError: if damaged lines cannot be recovered, or the file cannot be read or written.
        """
        self.path = folder / FILE
        self.record, lines = _read(folder)
        self.mended: str | None = None
        """Message about removed lines; None if none were removed."""
        if self.record.damaged:
            self._mend(lines)
        size = sum(len(line) + 1 for line in lines)
        try:
            self._file = LineFile(self.path, size)
        except OSError as error:
            raise RunError(f"cannot use {self.path}: {error.strerror or error}") from None

    def _mend(self, lines: list[bytes]) -> None:
        """Rewrite the file without its damaged lines, after a check that no searched point is lost."""
        lost = _lost_points(self.record, lines)
        if lost:
            raise RunError(
                f"{self.path}, {self.record.damaged[0]}, is damaged, and nothing else says what {lost[0]} is to try; "
                "restore the line from a copy, or start another sweep from what can be read with --fork"
            )
        kept = copy_aside(self.path)
        with atomic_path(self.path, sync=True) as temporary:
            write_bytes(temporary, b"".join(line + b"\n" for line in lines))
        what = f"line {self.record.damaged[0].removeprefix('line ')}"
        more = f" and {len(self.record.damaged) - 1} more" if len(self.record.damaged) > 1 else ""
        self.mended = (
            f"{FILE} is damaged in {what}{more}: it lies in {kept.name}, and what these lines said is read again from "
            "the trials' folders or made anew"
        )

    def name_study(self, name: str, sampler_options: dict[str, Any]) -> None:
        """Record the name of the Optuna study and its sampler's options."""
        self._append({"event": "study", "name": name, "sampler_options": sampler_options})

    def start(self, entry: Entry) -> Entry:
        """Record a trial before it runs, and return it as it is read back."""
        event = self._append(
            {
                "event": "trial",
                "trial_id": entry.trial_id,
                "role": entry.role,
                "method": entry.method,
                "number": entry.number,
                "params": entry.params,
                "point": entry.point,
                "seed_index": entry.seed_index,
            }
        )
        return _entry(event)

    def finish(self, result: TrialResult, *, seconds: float, elapsed: float) -> TrialResult:
        """Record a trial's result, and return it as it is read back (infinite metrics become NaN).

        Args:
            result: result of the trial.
            seconds: time for which the trial occupied a process.
            elapsed: run time of the sweep in seconds.
        """
        times = {"seconds": round(seconds, 3), "elapsed": round(elapsed, 3)}
        return _result(self._append({"event": "result", **times, **_plain(result.to_dict())}), self.path.parent)

    def give_up(self, trial_id: str, reason: str) -> None:
        """Record that a trial's process was ended from outside, and that this driver does not run the trial again."""
        self._append({"event": "killed", "trial_id": trial_id, "reason": reason})

    def record_rung(self, trial_id: str, step: int, desired: float, harmful: float) -> None:
        """Record a trial's accuracies at a rung."""
        self._append({"event": "rung", "trial_id": trial_id, "step": step, "desired": desired, "harmful": harmful})

    def output_dir(self, trial_id: str) -> Path:
        """Folder of a trial."""
        return trial_folder(self.path.parent, trial_id)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, event: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(event, allow_nan=False)
        try:
            self._file.append(f"{line}\n".encode(), sync=True)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}; free space and --resume") from None
        written: dict[str, Any] = json.loads(line)
        return written


def trial_folder(sweep_folder: Path, trial_id: str) -> Path:
    """Folder of a trial within its sweep's folder."""
    return sweep_folder / "trials" / trial_id


def _read(folder: Path) -> tuple[Record, list[bytes]]:
    """Parse the ledger; returns the record and the undamaged complete lines, without line ends."""
    path, record = folder / FILE, Record()
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise RunError(f"cannot use {path}: {error.strerror or error}") from None
    sound = []
    for number, line in enumerate(lines[:-1], start=1):
        event = None
        try:
            event = json.loads(line)
            _apply(event, record, folder)
        except MALFORMED as error:
            if event is not None or number < len(lines) - 1:  # else the last line was cut off by a kill or a full disk
                record.damaged.append(f"line {number} ({reason(error)})")
            continue
        sound.append(line)
    return record, sound


def _lost_points(record: Record, lines: list[bytes]) -> list[str]:
    """Searched points that lines refer to, or that are missing in the numbering, without a line that starts them."""
    spoken = {str(json.loads(line).get("trial_id")) for line in lines} | set(record.entries)
    spoken |= {match[0] for text in record.damaged if (match := re.search(r"t\d{4,}", text))}
    numbers = {int(name[1:]) for trial_id in spoken if (name := _POINT.sub("", trial_id)) and name[1:].isdigit()}
    known = {entry.point for entry in record.entries.values() if entry.role == "search"}
    return [name for index in range(max(numbers, default=-1) + 1) if (name := f"t{index:04d}") not in known]


_POINT = re.compile(r"(?:-s\d+)?(?:-final)?$|^(?!t\d{4,}(?:-|$)).*")
"""Matches the parts of a trial id that do not belong to the id of a searched point."""


_KINDS = {
    **dict.fromkeys(("event", "trial_id", "role", "method", "point", "name", "reason"), "text"),
    **dict.fromkeys(("desired", "harmful", "seconds", "elapsed"), "number"),
    "params": "mapping", "seed_index": "whole", "step": "whole",
}  # fmt: skip
"""Expected kind of each value in an event."""


def _apply(event: dict[str, Any], record: Record, folder: Path) -> None:
    check_kinds(event, _KINDS)
    kind = event["event"]
    if kind == "study":
        record.study_name, record.sampler_options = event["name"], event.get("sampler_options")
    elif kind == "rung":
        record.entries[event["trial_id"]]  # KeyError if the trial never began: the line is damaged
        record.rungs.setdefault(event["step"], {})[event["trial_id"]] = (event["desired"], event["harmful"])
    elif kind == "trial":
        record.entries[event["trial_id"]] = _entry(event)
    elif kind == "killed":
        entry = record.entries[event["trial_id"]]
        entry.num_killed, entry.killed = entry.num_killed + 1, event["reason"]
    else:
        entry = record.entries[event["trial_id"]]
        record.elapsed = event.get("elapsed", record.elapsed)
        entry.result, entry.seconds = _result(event, folder), event.get("seconds", 0.0)


def _entry(event: dict[str, Any]) -> Entry:
    return Entry(**{name: value for name, value in event.items() if name != "event"})


def _result(event: dict[str, Any], folder: Path) -> TrialResult:
    metrics = nan_for_null(event["metrics"])
    values = {name: value for name, value in event.items() if name not in ("event", "seconds", "elapsed")}
    return TrialResult.from_dict({**values, "metrics": metrics}, trial_folder(folder, event["trial_id"]))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    metrics = null_for_nan(values["metrics"])
    return {**values, "metrics": metrics}
